from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from gacq_deploy.backends import ort
from gacq_deploy.backends.ort import OrtCpuEngine, needs_exact_kernels, require_provider, session_options
from gacq_deploy.backends.processor import Processor
from gacq_deploy.engines.catalogue import engine_named
from gacq_deploy.engines.open import open_engine
from gacq_deploy.errors import BackendUnavailable, EngineError, UsageError
from tests.support.graphs.onnx_graphs import denoiser_graph, feeds
from tests.support.graphs.qdq_graphs import int4_blocks

ENGINES = ["ort-cpu", "openvino"]


def _model(node: onnx.NodeProto, *constants: onnx.TensorProto) -> bytes:
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        list(constants),
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    ).SerializeToString()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_graph_the_engine_cannot_load_is_an_engine_error(
    engine: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(EngineError, match="refuses the model") as caught:
        open_engine(engine, _model(helper.make_node("NoSuchOperator", ["x"], ["y"])), threads=1)
    assert "NoSuchOperator" in caught.value.message
    assert ".cc" not in str(caught.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_that_fails_is_an_engine_error(engine: str, capfd: pytest.CaptureFixture[str]) -> None:
    three_rows = helper.make_tensor("three", TensorProto.FLOAT, [3, 4], [0.0] * 12)
    model = _model(helper.make_node("Add", ["x", "three"], ["y"]), three_rows)
    with open_engine(engine, model, threads=1) as opened, pytest.raises(EngineError, match="the run failed"):
        opened.run({"x": np.ones((2, 4), np.float32)})
    assert capfd.readouterr().err == ""


def test_a_provider_that_is_not_offered_is_refused() -> None:
    with pytest.raises(BackendUnavailable, match="CUDAExecutionProvider") as caught:
        open_engine("ort-cuda", denoiser_graph().SerializeToString())
    assert "gacq-deploy[gpu]" in caught.value.hint


def test_a_silent_fallback_is_refused() -> None:
    with pytest.raises(
        BackendUnavailable, match="asked for CUDAExecutionProvider and gave CPUExecutionProvider"
    ):
        require_provider("CUDAExecutionProvider", ["CPUExecutionProvider"], "install it")
    require_provider("CUDAExecutionProvider", ["CUDAExecutionProvider", "CPUExecutionProvider"], "")


def test_threads_are_set() -> None:
    assert session_options(threads=3, optimize=True).intra_op_num_threads == 3


@pytest.mark.parametrize(
    ("machine", "flags", "saturates"),
    [
        ("x86_64", {"avx2", "avx512bw"}, True),
        ("AMD64", set(), True),
        ("x86_64", {"avx2", "avx512_vnni"}, False),
        ("x86_64", {"avx2", "avx_vnni"}, False),
        ("aarch64", set(), False),
    ],
)
def test_exact_kernels_are_asked_for_where_the_fast_ones_saturate(
    machine: str, flags: set[str], saturates: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort, "this_processor", lambda: Processor(machine, "here", frozenset(flags)))
    options = session_options(threads=1, optimize=True)
    if saturates:
        assert options.get_session_config_entry("session.x64quantprecision") == "1"
    else:
        with pytest.raises(RuntimeError, match="x64quantprecision"):
            options.get_session_config_entry("session.x64quantprecision")


@pytest.mark.parametrize("exact", [False, True])
def test_extreme_codes_do_not_saturate(exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every product is 255 x 127: two of them already exceed 16 bits."""
    monkeypatch.setattr(ort, "needs_exact_kernels", lambda processor: exact or needs_exact_kernels(processor))
    model = denoiser_graph(quantized=True)
    for tensor in model.graph.initializer:
        if tensor.name == "conv:weight.codes":
            tensor.CopyFrom(numpy_helper.from_array(np.full(tensor.dims, 127, np.int8), tensor.name))
        if tensor.name == "conv:input.zero_point":
            tensor.CopyFrom(numpy_helper.from_array(np.uint8(0), tensor.name))
        if tensor.name == "conv:output.scale":
            tensor.CopyFrom(numpy_helper.from_array(np.float32(0.4), tensor.name))
    given = feeds(2)
    given["sample"][:] = 255 * 0.03
    data = model.SerializeToString()
    uses = engine_named("ort-cpu").executed_kernels(data)
    assert [u.integer for u in uses] == [True, True]
    with (
        open_engine("ort-cpu", data, threads=1, optimize=False) as plain,
        open_engine("ort-cpu", data) as opened,
    ):
        np.testing.assert_allclose(opened.run(given)["output"], plain.run(given)["output"], atol=0.41)
        assert float(plain.run(given)["output"].max()) > 30


@pytest.mark.parametrize("engine", ENGINES)
def test_products_with_int4_weights_keep_their_float_activations(engine: str) -> None:
    """ONNX Runtime's own default rounds them to int8 as it runs: some 0.5 % off."""
    model = int4_blocks(32)
    x = np.random.default_rng(1).standard_normal((16, 128)).astype(np.float32)
    data = model.SerializeToString()
    with (
        open_engine(engine, data, threads=1) as opened,
        open_engine("ort-cpu", data, threads=1, optimize=False) as plain,
    ):
        exact = plain.run({"x": x})["y"]
        np.testing.assert_allclose(opened.run({"x": x})["y"], exact, atol=1e-5 * float(np.abs(exact).max()))


def test_the_label_names_version_and_provider() -> None:
    with OrtCpuEngine(denoiser_graph().SerializeToString(), threads=1) as engine:
        assert engine.label.startswith("onnxruntime-1.")
        assert engine.label.endswith("/CPUExecutionProvider")


def test_openvino_cannot_leave_a_graph_as_it_is() -> None:
    with pytest.raises(UsageError, match="always optimizes"):
        open_engine("openvino", denoiser_graph().SerializeToString(), optimize=False)


@pytest.mark.parametrize("engine", ENGINES)
def test_integer_kernels_are_reported_by_layer(engine: str, tmp_path: Path) -> None:
    path = tmp_path / "int8.onnx"
    path.write_bytes(denoiser_graph(quantized=True).SerializeToString())
    uses = engine_named(engine).executed_kernels(path)
    assert [u.layer.codes for u in uses] == ["conv:weight.codes", "linear:weight.codes"]
    assert all(u.integer for u in uses), uses
    assert engine_named(engine).executed_kernels(path.read_bytes()) == uses


def test_an_engine_that_told_its_kernels_computes_the_same() -> None:
    data, given = denoiser_graph(quantized=True).SerializeToString(), feeds(4)
    engine, uses = OrtCpuEngine.open_with_kernels(data, threads=1)
    with engine, open_engine("ort-cpu", data, threads=1) as plain:
        assert np.array_equal(engine.run(given)["output"], plain.run(given)["output"])
        assert engine.label == plain.label
    assert uses == engine_named("ort-cpu").executed_kernels(data)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_float_graph_has_no_integer_kernels(engine: str) -> None:
    assert engine_named(engine).executed_kernels(denoiser_graph().SerializeToString()) == ()


def test_a_convolution_without_output_quantizer_is_seen_to_run_in_float() -> None:
    model = denoiser_graph(quantized=True)
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            if name == "conv:output:dq":
                node.input[position] = "y"
    kept = [n for n in model.graph.node if not n.name.startswith("conv:output/")]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    conv, linear = engine_named("ort-cpu").executed_kernels(model.SerializeToString())
    assert (conv.kernel, conv.integer) == ("Conv", False)
    assert (linear.kernel, linear.integer) == ("MatMulIntegerToFloat", True)


def test_an_engine_that_cannot_tell_its_kernels_says_so() -> None:
    with pytest.raises(UsageError, match="does not tell"):
        engine_named("ort-cuda").executed_kernels(b"")


@pytest.mark.parametrize("engine", ENGINES)
def test_integer_kernels_compute_what_the_graph_says(engine: str) -> None:
    data = denoiser_graph(quantized=True).SerializeToString()
    given = feeds(4)
    with open_engine("ort-cpu", data, threads=1, optimize=False) as plain:
        want = plain.run(given)["output"]
    with open_engine(engine, data, threads=1) as opened:
        got = opened.run(given)["output"]
    # a rounding tie may move one code of the convolution's output (0.05) and of the linear's input (0.01)
    assert float(np.mean(np.abs(got - want) > 1e-5)) < 0.02
    assert float(np.abs(got - want).max()) < 0.06
