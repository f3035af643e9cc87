"""What is a graph's chance on a target? Files of other tools, and what no rule covers."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from gacq_deploy.backends import ort
from gacq_deploy.build_trt.layers import CompiledLayer
from gacq_deploy.check.check import CheckRequest, Layers, Preflight, check_file
from gacq_deploy.check.evidence import surprising_layers
from gacq_deploy.check.targets import CHECK_TARGETS
from gacq_deploy.errors import ArtifactError, BackendUnavailable, UsageError
from gacq_deploy.graph.index import GraphIndex
from tests.support.graphs import foreign_graphs as foreign
from tests.support.graphs import qdq_blocks as blocks
from tests.support.graphs import qdq_graphs as graphs
from tests.support.graphs.graph_sketch import Sketch
from tests.support.graphs.onnx_graphs import save_external

pytestmark = pytest.mark.usefixtures("warm_builds")

COMPILE = CheckRequest(compile=True)


@dataclass(frozen=True)
class Tool:
    """A file as some tool writes it, and what stands in the way of TensorRT and ONNX Runtime."""

    name: str
    write: Callable[[Path], Path]
    tensorrt: str
    blocked: frozenset[str]
    layers: int
    int8: int


TOOLS = [
    Tool("float", foreign.float_file, "likely", frozenset(), 0, 0),
    Tool(
        "onnxruntime", foreign.quantized_by_onnxruntime, "blocked",
        frozenset({"bias-int32", "zero-point-not-zero"}), 2, 0,
    ),
    Tool(
        "onnxruntime-symmetric", lambda p: foreign.quantized_by_onnxruntime(p, **foreign.SIGNED), "blocked",
        frozenset({"bias-int32"}), 2, 0,
    ),
    Tool(
        "onnxruntime-float-bias", lambda p: foreign.quantized_by_onnxruntime(p, **foreign.FOR_TENSORRT), "likely",
        frozenset(), 2, 2,
    ),
    Tool(
        "onnxruntime-operators", lambda p: foreign.quantized_by_onnxruntime(p, **foreign.OPERATORS), "blocked",
        frozenset({"integer-operator", "foreign-domain"}), 0, 0,
    ),
    Tool("modelopt", foreign.float_weights_quantized_in_the_graph, "likely", frozenset(), 1, 1),
]  # fmt: skip


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "graph.onnx"
    onnx.save(model, path)
    return path


def rules(found: Preflight, weight: str) -> set[str]:
    return {r.rule for r in found.reasons if r.weight == weight}


@pytest.mark.parametrize("target", ["tensorrt-10", "tensorrt-11"])
@pytest.mark.parametrize("tool", TOOLS, ids=lambda t: t.name)
def test_files_of_other_tools_for_a_target_that_is_not_here(tool: Tool, target: Any, tmp_path: Path) -> None:
    found = check_file(tool.write(tmp_path / "int8.onnx"), target)
    assert found.verdict == tool.tensorrt
    assert rules(found, "blocked") == tool.blocked
    assert found.layers == Layers(tool.layers, tool.int8, None)
    assert all(r.node and r.detail and r.remedy for r in found.reasons)


@pytest.mark.rtx
@pytest.mark.parametrize("tool", TOOLS, ids=lambda t: t.name)
def test_the_real_parser_and_compiler_agree(tool: Tool, tmp_path: Path) -> None:
    path = tool.write(tmp_path / "int8.onnx")
    parsed, compiled = check_file(path, "tensorrt-rtx"), check_file(path, "tensorrt-rtx", COMPILE)
    assert parsed.verdict == tool.tensorrt
    assert compiled.verdict == {"likely": "verified"}.get(tool.tensorrt, tool.tensorrt)
    refused = {"parser"} if tool.blocked else set()
    assert rules(parsed, "blocked") == rules(compiled, "blocked") == tool.blocked | refused
    assert any(step.startswith("parser of tensorrt-rtx") for step in parsed.examined)
    assert compiled.layers == Layers(tool.layers, tool.int8, None if refused else tool.int8)


@pytest.mark.parametrize("exact", [False, True], ids=["fast kernels", "exact kernels"])
@pytest.mark.parametrize("tool", TOOLS, ids=lambda t: t.name)
def test_onnxruntime_loads_and_runs_them(
    tool: Tool, exact: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort, "needs_exact_kernels", lambda _: exact)
    path = tool.write(tmp_path / "int8.onnx")
    if exact and tool.name == "onnxruntime-operators":  # int8 activations in QLinearConv
        (refused,) = (r for r in check_file(path, "ort-cpu").reasons if r.weight == "blocked")
        assert "has no VNNI" in refused.remedy
        return
    assert check_file(path, "ort-cpu").verdict == "likely"
    found = check_file(path, "ort-cpu", COMPILE)
    assert found.verdict == "verified"
    assert found.layers.predicted is None
    assert found.layers.measured is not None
    assert found.layers.measured + sum(r.rule == "kernel" for r in found.reasons) <= found.layers.quantized


def test_a_silent_error_stays_blocked_however_well_it_compiles(tmp_path: Path) -> None:
    found = check_file(saved(graphs.conv(dtype=np.uint8), tmp_path), "tensorrt-11")
    assert found.verdict == "blocked"
    assert rules(found, "blocked") == {"uint8-codes"}


def _operator(op: str, opset: int = 24, domain: str = "") -> onnx.ModelProto:
    s = Sketch(opset=opset, inputs=graphs.IMAGE, domains=[domain] if domain else [])
    s.conv(s.pair("x", "a"), "h", weight=s.weight("w", graphs.CODES, graphs.SCALES))
    s.node(op, ["h"], "y", "special", domain=domain)
    return s.model()


def _einsum() -> onnx.ModelProto:
    s = Sketch(inputs=graphs.TOKENS)
    weight = s.weight("w", graphs.MATRIX, graphs.SCALES, 1)
    s.node("Einsum", [s.pair("x", "a"), weight], "y", "special", equation="bik,kj->bij")
    return s.model()


def _hidden() -> onnx.ModelProto:
    """A quantized convolution inside one branch of an If."""
    inner = graphs.conv()
    info = helper.make_tensor_value_info
    then = helper.make_graph(
        list(inner.graph.node), "then", [], list(inner.graph.output), inner.graph.initializer
    )
    skip = helper.make_node("Identity", ["x"], ["z"], "skip")
    other = helper.make_graph([skip], "else", [], [info("z", TensorProto.FLOAT, None)])
    node = helper.make_node("If", ["which"], ["out"], "special", then_branch=then, else_branch=other)
    inputs = [*inner.graph.input, info("which", TensorProto.BOOL, [])]
    graph = helper.make_graph([node], "g", inputs, [info("out", TensorProto.FLOAT, None)])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def _function() -> onnx.ModelProto:
    model = _operator("Twice", 20, "own")
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    opsets = [helper.make_opsetid("", 20)]
    model.functions.append(helper.make_function("own", "Twice", ["a"], ["b"], body, opsets))
    return model


@pytest.mark.parametrize(
    ("build", "target", "verdict", "rule", "node"),
    [
        (lambda: _operator("Swish"), "tensorrt-10", "unverified", "operator", "special"),
        (lambda: _operator("Swish"), "tensorrt-11", "likely", "", ""),
        (lambda: _operator("Det"), "tensorrt-11", "blocked", "operator", "special"),
        (lambda: _operator("Gelu", 20, "com.microsoft"), "tensorrt-11", "unverified", "operator", "special"),
        (lambda: _operator("Relu", 25), "tensorrt-10", "unverified", "opset", "(graph)"),
        (lambda: _operator("Relu", 25), "tensorrt-11", "likely", "", ""),
        (_einsum, "tensorrt-11", "unverified", "quantized-operator", "special"),
        (_hidden, "tensorrt-11", "unverified", "subgraph", "special"),
        (_function, "tensorrt-11", "unverified", "function", "Twice"),
    ],
)
def test_what_no_rule_covers_is_said(
    build: Callable[[], onnx.ModelProto], target: Any, verdict: str, rule: str, node: str, tmp_path: Path
) -> None:
    found = check_file(saved(build(), tmp_path), target)
    assert found.verdict == verdict
    assert {r.node for r in found.reasons if r.rule == rule} == ({node} if node else set())


@pytest.mark.rtx
@pytest.mark.parametrize(
    "build", [_einsum, lambda: _operator("Gelu", 20, "com.microsoft")], ids=["einsum", "gelu"]
)
def test_compiling_answers_what_was_open(build: Callable[[], onnx.ModelProto], tmp_path: Path) -> None:
    path = saved(build(), tmp_path)
    assert check_file(path, "tensorrt-rtx").verdict == "unverified"
    assert check_file(path, "tensorrt-rtx", COMPILE).verdict == "verified"


@pytest.mark.rtx
def test_a_crash_of_the_builder_is_a_reason(tmp_path: Path) -> None:
    found = check_file(saved(graphs.scale_from("data"), tmp_path), "tensorrt-rtx", COMPILE)
    assert found.verdict == "blocked"
    assert rules(found, "blocked") == {"scale-run-time", "compiler"}
    assert any("SIGSEGV" in r.detail for r in found.reasons)


@pytest.mark.rtx
def test_open_dimensions_need_shapes_but_for_the_batch(tmp_path: Path) -> None:
    s = Sketch(inputs={"x": ["rows", 16, 16, 16]})
    s.conv(s.pair("x", "a"), weight=s.weight("w", graphs.CODES, graphs.SCALES))
    assert check_file(saved(s.model(), tmp_path), "tensorrt-rtx", COMPILE).verdict == "verified"
    s = Sketch(inputs={"x": ["rows", 16, "height", "width"]})
    s.conv(s.pair("x", "a"), weight=s.weight("w", graphs.CODES, graphs.SCALES))
    path = saved(s.model(), tmp_path)
    assert check_file(path, "tensorrt-rtx").verdict == "likely"
    with pytest.raises(UsageError, match="height"):
        check_file(path, "tensorrt-rtx", COMPILE)
    shaped = CheckRequest(compile=True, shapes={"x": (2, 16, 8, 8)})
    assert check_file(path, "tensorrt-rtx", shaped).verdict == "verified"
    assert check_file(path, "ort-cpu", shaped).verdict == "verified"


@pytest.mark.parametrize("target", CHECK_TARGETS)
def test_weights_beside_the_file(target: Any, tmp_path: Path) -> None:
    path = tmp_path / "large.onnx"
    data = save_external(blocks.attention(), path)
    assert check_file(path, target).verdict == "likely"
    data.unlink()
    with pytest.raises(ArtifactError, match="missing"):
        check_file(path, target)


@pytest.mark.parametrize("target", CHECK_TARGETS)
def test_garbage_is_no_graph(target: Any, tmp_path: Path) -> None:
    (tmp_path / "garbage.onnx").write_bytes(b"\x93not a graph" * 40)
    with pytest.raises(ArtifactError):
        check_file(tmp_path / "garbage.onnx", target)
    with pytest.raises(ArtifactError, match="missing"):
        check_file(tmp_path / "nothing.onnx", target)


def test_onnxruntime_refuses_what_it_cannot_load(tmp_path: Path) -> None:
    found = check_file(saved(graphs.mixed_floats("weight"), tmp_path), "ort-cpu", COMPILE)
    assert found.verdict == "blocked"
    assert "loader" in rules(found, "blocked")


@pytest.mark.parametrize("asked", [CheckRequest(), COMPILE], ids=["loaded", "run"])
def test_onnxruntime_loads_a_graph_once_and_nothing_else_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: CheckRequest
) -> None:
    held: list[int] = []
    create = ort._create_session

    def counting(*given: Any) -> Any:
        gc.collect()
        held.append(sum(isinstance(found, GraphIndex) for found in gc.get_objects()))
        return create(*given)

    gc.collect()
    before = sum(isinstance(found, GraphIndex) for found in gc.get_objects())
    monkeypatch.setattr(ort, "_create_session", counting)
    found = check_file(saved(graphs.conv(), tmp_path), "ort-cpu", asked)
    assert any(line.startswith("loaded in onnxruntime-") for line in found.examined)
    assert held == [before]


def test_compiling_for_a_library_that_is_not_here_is_an_error(tmp_path: Path) -> None:
    if find_spec("tensorrt"):
        pytest.skip("TensorRT is installed")
    with pytest.raises(BackendUnavailable, match="tensorrt"):
        check_file(saved(graphs.conv(), tmp_path), "tensorrt-11", COMPILE)


def test_a_surprise_of_the_compiler_is_told_from_a_merged_layer() -> None:
    layers = (
        CompiledLayer("a", "correlation", ("Int8",), ("Int8",), ("Float",), "stub", ("kept",)),
        CompiledLayer("b", "correlation", ("Half", "Half"), (), ("Half",), "stub", ("lost",)),
    )
    found = surprising_layers({"kept": "int8", "lost": "int8", "gone": "int8", "float": "float"}, layers)
    assert [(r.weight, r.rule, r.node) for r in found] == [
        ("unverified", "prediction", "lost"),
        ("note", "removed", "gone"),
    ]
