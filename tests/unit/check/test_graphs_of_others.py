"""Whatever a graph of others is like: lint, check and predict answer or say what is wrong, in bounded work."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from gacq_deploy.check import check
from gacq_deploy.check.check import check_file
from gacq_deploy.check.evidence import Examination
from gacq_deploy.errors import ArtifactError
from gacq_deploy.lint.lint import RULE_SETS, lint_file, lint_graph, predict_compilation
from tests.support.fuzz.bounded import counted
from tests.support.graphs import qdq_graphs as graphs
from tests.support.graphs.graph_sketch import DQ, Q, Sketch
from tests.support.graphs.large import FAMILIES


@pytest.fixture(autouse=True)
def parser_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask no library: that is a process of its own each time, and its answer is not in question here."""
    monkeypatch.setattr(check, "ask_tensorrt", lambda *_: Examination())


@pytest.mark.parametrize("family", FAMILIES)
def test_work_grows_no_faster_than_the_graph(family: str, tmp_path: Path) -> None:
    calls = []
    for nodes in (150, 300):
        path = tmp_path / f"{nodes}.onnx"
        path.write_bytes(FAMILIES[family](nodes).SerializeToString())
        with counted(10**6) as count:
            try:
                check_file(path, "tensorrt-11")
                lint_file(path, target="openvino")
            except ArtifactError:
                assert family == "cycle"
        calls.append(count[0])
    assert calls[1] < 2.2 * calls[0]


def test_paths_without_number_and_long_chains_are_answered(tmp_path: Path) -> None:
    joined = FAMILIES["joined with itself"](3000)
    assert [f.rule for f in lint_graph(joined, target="tensorrt")] == ["activation-only"]
    assert predict_compilation(joined).layers == {"layer": "float"}
    deep = FAMILIES["last node first"](3000)
    assert [f.rule for f in lint_graph(deep, target="tensorrt")] == ["nothing-quantized"]


def test_a_stored_tensor_that_many_nodes_share_is_held_once() -> None:
    s = Sketch(inputs={"x": [1, 4]})
    s.store("scale", np.full(2**18, 0.1)), s.store("codes", np.ones(2**20), np.int8)
    for i in range(100):
        s.node(Q, ["x", "scale"], f"codes{i}", output_dtype=3)
        s.node(DQ, [f"codes{i}", "scale"], f"values{i}")
        s.node(DQ, ["codes", "scale"], f"weight{i}")
    model = s.model("values0")
    tracemalloc.start()
    lint_graph(model, target="tensorrt")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * 2**20


def test_what_is_joined_is_counted_as_far_as_anyone_reads() -> None:
    found = [
        f for f in lint_graph(FAMILIES["one wide join"](300), target="tensorrt") if f.rule == "concat-scales"
    ]
    assert [f.detail for f in found] == ["64 or more branches feed 'layer0' with different scales"]


def test_inputs_that_a_scale_depends_on_are_named_as_far_as_anyone_reads() -> None:
    found = [
        f for f in lint_graph(FAMILIES["computed scales"](90), target="tensorrt") if "run-time" in f.rule
    ]
    assert len(found[-1].detail) < 300
    assert found[0].detail == "scale computed from in0, scale"


def test_a_name_of_any_length_is_told_in_part() -> None:
    s = Sketch()
    s.node("Relu", ["x"], "n" * 10_000, "relu")
    s.conv(s.pair("n" * 10_000, "a"), "y", weight=s.pair("n" * 10_000, "b", 0.2))
    found = [f for f in lint_graph(s.model(), target="tensorrt") if f.rule == "several-scales"]
    assert len(found[0].detail) < 2100


def test_findings_hold_no_control_characters() -> None:
    model = graphs.joined("nested")
    for node in model.graph.node:
        node.name = f"\x1b]0;{node.name}\x07\n\x9b2J"
    for target in RULE_SETS:
        for finding in lint_graph(model, target=target):
            assert str(finding).isprintable()
    reasons = predict_compilation(model).reasons
    assert reasons
    assert all(str(finding).isprintable() for finding in reasons.values())
