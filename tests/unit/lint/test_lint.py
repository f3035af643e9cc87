"""Every rule of the lint is fed the pattern it is about, in a graph that is otherwise clean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from gacq_deploy.artifact.artifact import CalibrationArtifact
from gacq_deploy.errors import ArtifactError, UsageError
from gacq_deploy.export.cpu_flavour import to_cpu_flavour
from gacq_deploy.export.qdq import insert_qdq
from gacq_deploy.lint.lint import (
    RULE_SETS,
    RULES,
    count_findings,
    lint_file,
    lint_graph,
    predict_compilation,
    predict_layers,
    why_not_int8,
)
from tests.support.graphs import qdq_blocks as blocks
from tests.support.graphs import qdq_graphs as graphs
from tests.support.graphs.graph_sketch import CODES, SCALES, Q, Sketch
from tests.support.graphs.qdq_patterns import BETWEEN, RESIZE

Array = np.ndarray[Any, Any]
BYTES, NIBBLES = graphs.CODES.view(np.uint8), graphs.CODES // 16
MATRIX = CODES[:, :, 0, 0]
UNITS = SCALES * np.float32(0.1)  # of the accumulator, when the input has scale 0.1


def clean() -> onnx.ModelProto:
    """A convolution and a linear layer in the canonical form."""
    s = Sketch()
    s.conv(s.pair("x", "a"), "h", s.store("bias", np.ones(4)))
    s.node("Sigmoid", ["h"], "sigmoid")
    s.node("Mul", ["h", "sigmoid"], "silu")
    s.node("MatMul", [s.pair("silu", "b"), s.weight("w2", np.ones((8, 5)), np.ones(5), axis=1)], "y")
    return s.model()


def clean_cpu() -> onnx.ModelProto:
    """The same convolution in ONNX Runtime's form."""
    s = Sketch()
    data = s.pair("x", "a", zero=128, dtype=np.uint8)
    bias = s.weight("bias", np.full(4, 100), UNITS, dtype=np.int32)
    s.pair(s.conv(data, "h", bias), "b", zero=128, dtype=np.uint8)
    s.node("Sigmoid", ["b.dequantized"], "y")
    return s.model()


def _with(**changes: Any) -> Callable[[], onnx.ModelProto]:
    """A convolution whose input pair is made with ``changes``."""

    def build() -> onnx.ModelProto:
        s = Sketch()
        s.conv(s.pair("x", "a", **changes))
        return s.model()

    return build


def _with_weight(
    codes: Any = CODES, scale: Any = SCALES, axis: int = 0, op: str = "Conv"
) -> Callable[[], onnx.ModelProto]:
    def build() -> onnx.ModelProto:
        s = Sketch()
        data, weight = s.pair("x", "a"), s.weight("w", codes, scale, axis)
        s.node(op, [data, weight], "y", "layer")
        return s.model()

    return build


def _with_opset(opset: int) -> Callable[[], onnx.ModelProto]:
    def build() -> onnx.ModelProto:
        model = clean()
        model.opset_import[0].version = opset
        return model

    return build


def _scale_at_run_time() -> onnx.ModelProto:
    s = Sketch(inputs={"x": [1, 4, 8, 8], "step": []})
    s.store("zero", 0, np.int8)
    s.node("Abs", ["step"], "scale")
    s.node(Q, ["x", "scale", "zero"], "codes", "a/Q")
    s.conv(s.dequantize("codes", "scale", "zero", "a"))
    return s.model()


def _zero_point_missing() -> onnx.ModelProto:
    s = Sketch()
    s.store("scale", 0.1)
    s.store("zero", 0, np.uint8)
    s.node(Q, ["x", "scale"], "codes", "a/Q")
    s.conv(s.dequantize("codes", "scale", "zero", "a"))
    return s.model()


def _zero_point_of_another_type() -> onnx.ModelProto:
    s = Sketch()
    s.store("codes", CODES, np.int8)
    s.store("scale", SCALES)
    s.store("zero", np.zeros(4), np.uint8)
    s.conv(s.pair("x", "a"), weight=s.dequantize("codes", "scale", "zero", "w", axis=0))
    return s.model()


def _float_weight() -> onnx.ModelProto:
    s = Sketch()
    s.store("w", CODES.astype(np.float32))
    s.conv(s.pair("x", "a"), weight=s.pair("w", "q", scale=SCALES, axis=0))
    return s.model()


def _bias_int32() -> onnx.ModelProto:
    s = Sketch()
    s.conv(s.pair("x", "a"), "y", s.weight("bias", np.ones(4), UNITS, dtype=np.int32))
    return s.model()


def _cpu(bias_scale: Any = UNITS, bias: Any = None) -> Callable[[], onnx.ModelProto]:
    """The CPU form with another bias: integer with ``bias_scale``, or the float ``bias``."""

    def build() -> onnx.ModelProto:
        s = Sketch()
        data = s.pair("x", "a", zero=128, dtype=np.uint8)
        stored = (
            s.weight("bias", np.ones(4), bias_scale, dtype=np.int32)
            if bias is None
            else s.store("bias", bias)
        )
        s.pair(s.conv(data, "h", stored), "b", zero=128, dtype=np.uint8)
        s.node("Sigmoid", ["b.dequantized"], "y")
        return s.model()

    return build


def _mixed_floats() -> onnx.ModelProto:
    s = Sketch()
    s.store("half.scale", 0.1, np.float16)
    s.store("half.zero", 0, np.int8)
    s.node("Cast", ["x"], "half", to=TensorProto.FLOAT16)
    s.node(Q, ["half", "half.scale", "half.zero"], "codes", "a/Q")
    s.conv(s.dequantize("codes", "half.scale", "half.zero", "a"))
    return s.model()


def _half_scale() -> onnx.ModelProto:
    s = Sketch()
    s.node("Cast", ["x"], "half", to=TensorProto.FLOAT16)
    s.conv(s.pair("half", "a", scale=np.float16(0.1)), weight=s.weight("w", CODES, SCALES.astype(np.float16)))
    return s.model()


def _activation_only() -> onnx.ModelProto:
    s = Sketch()
    s.conv(s.pair("x", "a"), weight=s.store("w", CODES.astype(np.float32)))
    return s.model()


def _weight_only(op: str) -> Callable[[], onnx.ModelProto]:
    def build() -> onnx.ModelProto:
        s = Sketch()
        if op == "Conv":
            s.conv("x")
        else:
            s.node(op, ["x", s.weight("w", np.ones((8, 4)), np.ones(4), axis=1)], "y", "layer")
        return s.model()

    return build


def _several_scales() -> onnx.ModelProto:
    s = Sketch()
    one, two = s.conv(s.pair("x", "a"), "one"), s.conv(s.pair("x", "b", scale=0.2), "two")
    s.node("Add", [one, two], "y")
    return s.model()


def _concat(scales: tuple[float, float], requantize: bool) -> onnx.ModelProto:
    s = Sketch()
    s.node("Relu", ["x"], "other")
    s.node("Concat", [s.pair("x", "a", scales[0]), s.pair("other", "b", scales[1])], "joined", axis=1)
    data = s.pair("joined", "c") if requantize else "joined"
    s.conv(data, weight=s.weight("w", np.concatenate([CODES, CODES], axis=1), SCALES))
    return s.model()


def _attention_product() -> onnx.ModelProto:
    s = Sketch()
    s.node("Transpose", ["x"], "t", perm=[0, 1, 3, 2])
    s.node("MatMul", [s.pair("x", "a"), s.pair("t", "b")], "y", "product")
    return s.model()


def _conv_transpose() -> onnx.ModelProto:
    s = Sketch()
    s.node("ConvTranspose", [s.pair("x", "a"), s.weight("w", CODES, SCALES, axis=1)], "y", "up")
    return s.model()


def _output_quantized() -> onnx.ModelProto:
    s = Sketch()
    s.node("Sigmoid", [s.pair(s.conv(s.pair("x", "a"), "h"), "b")], "y")
    return s.model()


def _orphan_quantizer() -> onnx.ModelProto:
    s = Sketch()
    s.store("scale", 0.1)
    s.store("zero", 0, np.int8)
    s.node(Q, ["x", "scale", "zero"], "codes", "a/Q")
    s.node("Cast", ["codes"], "values", to=TensorProto.FLOAT)
    s.conv(s.pair("values", "b"))
    return s.model()


def _unread_dequantizer() -> onnx.ModelProto:
    s = Sketch()
    s.conv(s.pair("x", "a"))
    s.weight("unread", CODES, SCALES)
    return s.model()


def _dequantizer_of_values() -> onnx.ModelProto:
    s = Sketch()
    s.store("scale", 0.1)
    s.store("zero", 0, np.int8)
    s.node("Cast", ["x"], "codes", to=TensorProto.INT8)
    s.conv(s.dequantize("codes", "scale", "zero", "a"))
    return s.model()


def _double_pair() -> onnx.ModelProto:
    s = Sketch()
    s.conv(s.pair(s.pair("x", "a"), "b"))
    return s.model()


def _residual() -> onnx.ModelProto:
    s = Sketch()
    s.node("Relu", ["x"], "other")
    s.node("Add", [s.pair("x", "a"), s.pair("other", "b")], "y")
    return s.model()


def _inside_norm(op: str) -> Callable[[], onnx.ModelProto]:
    def build() -> onnx.ModelProto:
        s = Sketch()
        data = s.pair("x", "a")
        if op == "Sigmoid":
            s.node(op, [data], "y")
        else:
            s.store("one", np.ones(4))
            s.node("Reshape", [data, s.store("shape", [1, 4, 64], np.int64)], "flat")
            s.node(op, ["flat", "one", "one"], "y")
        return s.model()

    return build


def _float_graph() -> onnx.ModelProto:
    s = Sketch()
    s.node("Relu", ["x"], "y")
    return s.model()


def _blocked(size: int) -> Callable[[], onnx.ModelProto]:
    attributes = {"op": "MatMul", "axis": 0, "block_size": size}
    return lambda: graphs.stored_weight(graphs.BLOCKED, np.int8, **attributes)


def _least(op: str) -> tuple[int, int]:
    """The least number of inputs and of outputs that an operator takes."""
    schema = onnx.defs.get_schema(op)
    return schema.min_input, schema.min_output


def _operator(op: str, domain: str = "", opset: int = 20) -> Callable[[], onnx.ModelProto]:
    def build() -> onnx.ModelProto:
        s = Sketch(opset=opset, domains=[domain] if domain else [])
        s.conv(s.pair("x", "a"), "h")
        # as many inputs and outputs as the operator needs, whatever they mean to it
        inputs, outputs = (1, 1) if domain else _least(op)
        s.node(op, ["h"] * inputs, "y", "special", domain=domain)
        s.nodes[-1].output.extend(f"y{i}" for i in range(1, outputs))
        return s.model()

    return build


@dataclass(frozen=True)
class Case:
    rule: str
    target: str
    severity: str
    node: str
    build: Callable[[], onnx.ModelProto]
    label: str = ""


NAN, INF = float("nan"), float("inf")
TRT, ORT, OV = "tensorrt", "ort-cpu", "openvino"
CASES = [
    Case("scale-not-positive", ORT, "error", "a/Q", _with(scale=0.0), "zero"),
    Case("scale-not-positive", OV, "error", "a/Q", _with(scale=-0.1), "negative"),
    Case("scale-not-positive", TRT, "error", "w/DQ", _with_weight(scale=[0.1, 0.1, -0.1, 0.1]), "weight"),
    Case("scale-not-finite", TRT, "error", "a/Q", _with(scale=NAN), "nan"),
    Case("scale-not-finite", ORT, "error", "a/Q", _with(scale=INF), "inf"),
    Case("scale-not-finite", OV, "error", "w/DQ", _with_weight(scale=[0.1, NAN, 0.1, 0.1]), "weight"),
    Case("scale-denormal", TRT, "error", "a/Q", _with(scale=1e-40)),
    Case("scale-run-time", TRT, "error", "a/Q", _scale_at_run_time),
    Case("scale-run-time", ORT, "warn", "a/Q", _scale_at_run_time),
    Case("scale-not-positive", TRT, "error", "a/Q", _with(scale=NAN), "nan"),
    Case("weight-scale-run-time", TRT, "error", "w/DQ", graphs.weight_scale_at_run_time),
    Case("scale-half", TRT, "warn", "a/Q", _half_scale),
    Case("zero-point-not-zero", TRT, "error", "a/Q", _with(zero=3)),
    Case("zero-point-missing", TRT, "error", "a/Q", _zero_point_missing),
    Case("zero-point-missing", OV, "warn", "a/Q", _zero_point_missing),
    Case("zero-point-type", ORT, "error", "w/DQ", _zero_point_of_another_type),
    Case("zero-point-type", OV, "error", "a/Q", _with(dtype=np.int16), "int16"),
    Case(
        "zero-point-shape",
        TRT,
        "error",
        "w/DQ",
        lambda: graphs.stored_weight(graphs.CODES, np.int8, zero=0, axis=0),
    ),
    Case("code-type", TRT, "error", "a/Q", _with(dtype=np.int16)),
    Case("uint8-codes", TRT, "error", "a/Q", _with(dtype=np.uint8)),
    Case("uint8-weights", TRT, "error", "w/DQ", lambda: graphs.stored_weight(BYTES, np.uint8, axis=0)),
    Case("signed-activations", ORT, "warn", "a/Q", _with()),
    Case("signed-activations-opset", ORT, "warn", "a/Q", _with_opset(21)),
    Case("channel-count", ORT, "error", "w/DQ", _with_weight(scale=np.ones(3))),
    Case("weight-axis", TRT, "error", "w/DQ", _with_weight(axis=1), "conv"),
    Case("weight-axis", OV, "warn", "w/DQ", _with_weight(axis=1), "conv"),
    Case("weight-axis", TRT, "error", "w/DQ", _with_weight(MATRIX, axis=0, op="MatMul"), "matmul"),
    Case("weight-axis", TRT, "error", "w/DQ", _with_weight(MATRIX, axis=0, op="Gemm"), "gemm"),
    Case("weight-rounded-by-engine", TRT, "warn", "q/Q", _float_weight),
    Case("weight-per-tensor", TRT, "info", "w/DQ", _with_weight(scale=np.float32(0.1))),
    Case("weight-code-128", TRT, "warn", "w/DQ", _with_weight(np.where(CODES.max() == CODES, -128, CODES))),
    Case("activation-per-channel", TRT, "error", "a/Q", _with(scale=SCALES, axis=1)),
    Case("activation-scale-rank", TRT, "warn", "a/DQ", lambda: graphs.scale_vector("Conv")),
    Case("block-ragged", TRT, "error", "w/DQ", lambda: graphs.int4_blocks(64, size=160)),
    # TensorRT takes 64 and 32 for two blocks of 48
    Case("block-ragged", TRT, "error", "w/DQ", lambda: graphs.int4_blocks(64, size=96), "misread"),
    Case("block-single", TRT, "warn", "w/DQ", lambda: graphs.int4_blocks(128)),
    Case("block-cast", TRT, "warn", "w/DQ", lambda: graphs.int4_blocks(32, cast=True)),
    Case("low-bit-opset", ORT, "error", "w/DQ", lambda: graphs.int4_blocks(32, opset=20)),
    Case("block-scales", TRT, "error", "w/DQ", _blocked(32)),
    Case(
        "low-bit-convolution",
        TRT,
        "error",
        "w/DQ",
        lambda: graphs.stored_weight(NIBBLES, ml_dtypes.int4, axis=0),
    ),
    Case("float8-codes", TRT, "info", "a/Q", graphs.float8),
    Case("bias-int32", TRT, "error", "bias/DQ", _bias_int32),
    Case("bias-float", ORT, "warn", "h/Conv", clean),
    Case("bias-overflow", ORT, "error", "h/Conv", _cpu(bias=[0, 1e8, 0, 0])),
    Case("bias-scale", ORT, "error", "bias/DQ", _cpu(bias_scale=SCALES)),
    Case("mixed-floats", TRT, "error", "y/Conv", _mixed_floats),
    Case("activation-only", TRT, "warn", "y/Conv", _activation_only),
    Case("weight-only-conv", TRT, "warn", "y/Conv", _weight_only("Conv")),
    Case("weight-only-matmul", TRT, "info", "layer", _weight_only("MatMul")),
    Case("several-scales", TRT, "warn", "a/Q", _several_scales),
    Case("concat-scales", TRT, "warn", "joined", lambda: _concat((0.1, 0.2), False)),
    *(
        Case("concat-scales", TRT, "warn", "joined", lambda k=k: graphs.joined(k), k)
        for k in ("nested", "pooled", "then-pooled")
    ),
    Case("weight-only-conv", TRT, "warn", "y/Conv", lambda: graphs.behind(RESIZE, before=True), "resize"),
    Case("attention-product", TRT, "warn", "product", _attention_product),
    Case("attention-product", OV, "info", "product", _attention_product),
    Case("product-of-one", TRT, "warn", "product-qk", lambda: blocks.attention(quantized="q")),
    Case("conv-transpose", TRT, "warn", "up", _conv_transpose),
    Case("conv-output-quantized", TRT, "info", "b/Q", _output_quantized),
    Case("conv-output-float", ORT, "warn", "h/Conv", clean),
    Case("orphan-quantize", TRT, "error", "a/Q", _orphan_quantizer),
    Case("orphan-dequantize", TRT, "error", "unread/DQ", _unread_dequantizer, "unread"),
    Case("orphan-dequantize", ORT, "error", "a/DQ", _dequantizer_of_values, "no-codes"),
    Case("double-pair", TRT, "info", "b/Q", _double_pair),
    Case("residual-branches", TRT, "info", "y", _residual),
    Case("inside-normalization", TRT, "warn", "a/DQ", _inside_norm("Sigmoid"), "silu"),
    Case("inside-normalization", OV, "warn", "a/DQ", _inside_norm("InstanceNormalization"), "norm"),
    Case("nothing-quantized", TRT, "warn", "(graph)", _float_graph),
    Case("opset-refused", ORT, "error", "(graph)", _with_opset(12)),
    Case("opset-refused", TRT, "error", "(graph)", _with_opset(26), "new"),
    Case("opset-untested", TRT, "warn", "(graph)", _with_opset(18), "old"),
    Case("opset-untested", OV, "warn", "(graph)", _with_opset(23), "new"),
    Case("attention-operator", TRT, "warn", "special", _operator("Attention", opset=23)),
    *(
        Case("integer-operator", TRT, "error", "special", _operator(op), op)
        for op in ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear")
    ),
    Case("foreign-domain", TRT, "error", "special", _operator("QuickGelu", "com.microsoft"), "microsoft"),
    Case("foreign-namesake", TRT, "warn", "special", _operator("Gelu", "com.microsoft")),
    Case("foreign-namesake", OV, "error", "special", _operator("Gelu", "com.microsoft")),
    Case("foreign-domain", ORT, "error", "special", _operator("Swirl", "org.example"), "unknown"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(filter(None, (c.rule, c.target, c.label))))
def test_rule_finds_its_pattern(case: Case) -> None:
    found = [f for f in lint_graph(case.build(), target=case.target) if f.rule == case.rule]
    assert found
    assert {f.severity for f in found} == {case.severity}
    assert found[0].node == case.node
    assert found[0].detail
    assert found[0].effect
    assert found[0].remedy
    assert str(found[0]).startswith(f"{case.severity}: {case.rule}: {case.node}: ")


def test_every_rule_and_each_of_its_targets_is_known() -> None:
    assert {c.rule for c in CASES} == {r.id for r in RULES}
    for rule in RULES:
        assert rule.severity
        assert rule.find.__doc__


@pytest.mark.parametrize("target", ["tensorrt", "openvino"])
def test_canonical_form_is_clean(target: str) -> None:
    assert lint_graph(clean(), target=target) == []


@pytest.mark.parametrize("half", [False, True], ids=["float", "half"])
@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
def test_int4_weights_in_blocks_are_worth_a_word_and_no_warning(op: str, half: bool) -> None:
    found = lint_graph(graphs.int4_blocks(32, op=op, half=half), target="tensorrt")
    assert [(f.rule, f.severity) for f in found] == [("weight-only-matmul", "info")]


def test_cpu_form_is_clean() -> None:
    assert lint_graph(clean_cpu(), target="ort-cpu") == []


def _gemm_transposed() -> onnx.ModelProto:
    s = Sketch()
    s.node("Gemm", [s.pair("x", "a"), s.weight("w", np.ones((5, 8)), np.ones(5), axis=0)], "y", transB=1)
    return s.model()


def _transposed_weight() -> onnx.ModelProto:
    s = Sketch()
    weight = s.weight("w", np.ones((5, 8)), np.ones(5), axis=0)
    s.node("Transpose", [weight], "t", perm=[1, 0])
    s.node("MatMul", [s.pair("x", "a"), "t"], "y")
    return s.model()


def _folded_scale() -> onnx.ModelProto:
    s = Sketch()
    s.store("table", [0.1, 0.2])
    s.store("zero", 0, np.int8)
    s.node("Gather", ["table", s.store("which", 1, np.int64)], "scale")
    s.node(Q, ["x", "scale", "zero"], "codes", "a/Q")
    s.conv(s.dequantize("codes", "scale", "zero", "a"))
    return s.model()


def _shared_pair() -> onnx.ModelProto:
    s = Sketch()
    data = s.pair("x", "a")
    s.node("Add", [s.conv(data, "one"), s.conv(data, "two")], "y")
    return s.model()


def _constant_node() -> onnx.ModelProto:
    s = Sketch()
    for name, value in (("scale", np.float32(0.1)), ("zero", np.int8(0))):
        s.node("Constant", [], name, value=numpy_helper.from_array(np.asarray(value), name))
    s.node(Q, ["x", "scale", "zero"], "codes", "a/Q")
    s.conv(s.dequantize("codes", "scale", "zero", "a"))
    return s.model()


CLEAN_VARIANTS = {
    "one-output-channel": _with_weight(CODES[:1], SCALES[:1]),
    "gemm-transB": _gemm_transposed,
    "transposed-weight": _transposed_weight,
    "concat-shared-scale": lambda: _concat((0.1, 0.1), False),
    "concat-requantized": lambda: _concat((0.1, 0.2), True),
    "constant-scale-subgraph": _folded_scale,
    "shared-pair": _shared_pair,
    "scale-by-constant-node": _constant_node,
}


@pytest.mark.parametrize("name", CLEAN_VARIANTS)
def test_allowed_patterns_are_left_alone(name: str) -> None:
    assert lint_graph(CLEAN_VARIANTS[name](), target="tensorrt") == []


def test_our_own_graphs_are_clean(exported: onnx.ModelProto, artifact: CalibrationArtifact) -> None:
    canonical = insert_qdq(exported, artifact, placement="input")
    flavour = to_cpu_flavour(insert_qdq(exported, artifact, placement="output"))
    for graph, target in ((canonical, "tensorrt"), (canonical, "openvino"), (flavour, "ort-cpu")):
        counts = count_findings(lint_graph(graph, target=target))
        assert (counts["error"], counts["warn"]) == (0, 0)


def test_each_flavour_is_wrong_for_the_other_engine(
    exported: onnx.ModelProto, artifact: CalibrationArtifact
) -> None:
    flavour = to_cpu_flavour(insert_qdq(exported, artifact, placement="output"))
    errors = {f.rule for f in lint_graph(flavour, target="tensorrt") if f.severity == "error"}
    assert errors == {"uint8-codes", "zero-point-not-zero", "bias-int32"}
    canonical = insert_qdq(exported, artifact, placement="input")
    slow = {f.rule for f in lint_graph(canonical, target="ort-cpu")}
    assert slow >= {"signed-activations", "conv-output-float"}


def test_errors_come_first() -> None:
    findings = lint_graph(_with_opset(26)(), target="ort-cpu")
    assert {f.severity for f in findings} == {"error", "warn"}
    assert [f.severity for f in findings] == sorted(
        (f.severity for f in findings), key=("error", "warn", "info").index
    )


def test_files_are_read_and_refused(tmp_path: Path) -> None:
    path = tmp_path / "any.onnx"
    path.write_bytes(_with(zero=3)().SerializeToString())
    assert "zero-point-not-zero" in {f.rule for f in lint_file(path, target="tensorrt")}
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ArtifactError):
        lint_file(path, target="tensorrt")


def test_unknown_targets_are_refused() -> None:
    with pytest.raises(UsageError, match="'tpu'") as raised:
        lint_graph(clean(), target="tpu")
    assert all(target in raised.value.hint for target in RULE_SETS)


@pytest.mark.parametrize("name", [n for n, (_, outcome) in BETWEEN.items() if outcome == "int8"])
def test_only_tensorrt_is_said_to_see_a_pair_through_operators(name: str) -> None:
    model = graphs.behind(BETWEEN[name][0], before=True)
    assert [f for f in lint_graph(model, target="tensorrt") if f.rule == "weight-only-conv"] == []
    near = {f.rule for f in lint_graph(model, target="openvino")}
    assert ("weight-only-conv" in near) == (name != "identity")


def test_a_prediction_says_what_ends_the_build() -> None:
    refused = predict_compilation(graphs.integer_bias())
    assert refused.outcome == "refused"
    assert refused.end is not None
    assert refused.end.rule == "bias-int32"
    assert set(refused.layers.values()) == {"refused"}
    assert predict_compilation(graphs.scale_from("data")).outcome == "crash"
    assert predict_compilation(graphs.integer_operator("QLinearConv")).outcome == "refused"


def test_reasons_belong_to_the_layers_they_slow_down() -> None:
    s = Sketch()
    good = s.conv(s.pair("x", "a"), "good")
    s.node("Sigmoid", [good], "gate")
    s.conv(s.pair("gate", "b", scale=SCALES, axis=1), "bad")
    model = s.model("bad")
    assert {n: f.rule for n, f in why_not_int8(model).items()} == {"bad/Conv": "activation-per-channel"}
    assert predict_layers(model) == {"good/Conv": "int8", "bad/Conv": "float"}


def test_layers_without_a_name_go_by_what_they_write() -> None:
    assert set(predict_layers(graphs.nameless())) == {"node_of_y"}
    assert predict_compilation(_float_graph()).layers == {}


@pytest.mark.parametrize("codes", [np.int8, ml_dtypes.int4], ids=["int8", "int4"])
@pytest.mark.parametrize("quantized", [True, False])
def test_blocks_whose_scales_lack_the_axis_are_read_like_any_graph(codes: Any, quantized: bool) -> None:
    s = Sketch(opset=21, inputs={"x": [1, 16, 32]})
    s.store("w.codes", np.ones((32, 8)), codes)
    s.store("w.scale", np.full(8, 0.01))
    weight = s.node("DequantizeLinear", ["w.codes", "w.scale"], "w", "w/DQ", axis=1, block_size=16)
    s.node("MatMul", [s.pair("x", "a") if quantized else "x", weight], "y", "layer")
    assert isinstance(lint_graph(s.model(), target="tensorrt"), list | tuple)
