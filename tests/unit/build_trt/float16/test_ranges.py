from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from gacq_deploy.backends.pieces import PieceEngine
from gacq_deploy.build_trt.float16.convert import to_half
from gacq_deploy.build_trt.float16.network import half_network
from gacq_deploy.build_trt.float16.ranges import RangeReport, measure_ranges, range_report, with_extremes
from gacq_deploy.engines.open import open_engine
from gacq_deploy.graph.files import write_graph
from gacq_deploy.spec import Array
from tests.support.graphs.graph_sketch import Sketch

SHAPE = (5, 4, 8, 8)


def sketch(more: dict[str, list[str]] | None = None) -> onnx.ModelProto:
    s = Sketch(inputs={"x": ["rows", 4, 8, 8], **(more or {})})  # type: ignore[dict-item] # a dynamic dimension
    s.node("Mul", ["x", s.store("k", -300.0)], "scaled")
    s.node("Mul", ["scaled", "scaled"], "squared")
    s.node("Shape", ["squared"], "shape")
    s.node("Sqrt", ["squared"], "root")
    s.pair("root", "a")
    s.node("Tanh", ["a.dequantized"], "y")
    return s.model()


def measure(model: onnx.ModelProto | Path, x: Array, batch: int = 2) -> dict[str, float]:
    opened = with_extremes(model).SerializeToString() if isinstance(model, onnx.ModelProto) else model
    with open_engine("ort-cpu", opened, threads=1) as engine:
        return measure_ranges(engine, {"x": x}, batch=batch)


def test_ranges_are_those_of_the_exposed_activations() -> None:
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    exposed, names = sketch(), ["scaled", "squared", "root", "y"]
    del exposed.graph.output[:]
    exposed.graph.output.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in names)
    with open_engine("ort-cpu", exposed.SerializeToString(), threads=1) as engine:
        expected = {name: float(np.abs(value).max()) for name, value in engine.run({"x": x}).items()}
    expected["x"] = float(np.abs(x).max())
    assert measure(sketch(), x) == expected
    assert measure(sketch(), x, batch=5) == expected


def test_a_tensor_is_measured_right_behind_the_node_that_makes_it() -> None:
    nodes = with_extremes(sketch()).graph.node
    made = {name: place for place, node in enumerate(nodes) for name in node.output}
    measured = [
        (n.input[0], place) for place, n in enumerate(nodes) if n.op_type in ("ReduceMax", "ReduceMin")
    ]
    assert len(measured) == 10
    assert {place - made.get(tensor, -1) for tensor, place in measured} == {1, 2}


def test_ranges_of_a_graph_in_pieces_are_those_of_the_whole(tmp_path: Path) -> None:
    path = write_graph(sketch({"timestep": ["rows"]}), tmp_path / "graph.onnx", external_data_mb=1)[-1]
    rng = np.random.default_rng(0)
    inputs = {"x": rng.standard_normal(SHAPE).astype(np.float32), "timestep": np.arange(5, dtype=np.float32)}
    whole, parts = (
        half_network(path, inputs, partial(opened, threads=1, optimize=False))
        for opened in (partial(open_engine, "ort-cpu"), PieceEngine)
    )
    assert parts == whole


def test_what_is_not_finite_is_named_and_no_island() -> None:
    x = np.full(SHAPE, 1.0, np.float32)
    x[3] = 1e30
    ranges = measure(sketch(), x)
    report = range_report(to_half(sketch(), ranges=ranges), ranges)
    assert report.not_finite == ("squared", "root")
    assert "squared" not in report.max_abs


def test_report() -> None:
    x = np.ones(SHAPE, np.float32)
    ranges = measure(sketch(), x)
    half = to_half(sketch(), ranges=ranges)
    report = range_report(half, ranges)
    assert report.max_abs["squared"] == 90_000
    assert [(i.node, i.why) for i in report.float32_nodes] == [("squared", "range"), ("root", "range")]
    assert [h.tensor for h in report.worst] == ["scaled", "y"], "what stays float32 has no headroom to report"
    assert report.worst[0].headroom == pytest.approx(65504 / 300)
    assert report.to_text() == ("2 nodes stay float32 (range 2); least headroom 218x at scaled (|x| <= 300)")
    assert RangeReport.model_validate(json.loads(report.model_dump_json())) == report


def test_report_without_measurement() -> None:
    assert range_report(to_half(sketch()), {}).to_text() == "all nodes in half; ranges not measured"


def test_graph_whose_weights_are_not_loaded(tmp_path: Path) -> None:
    s = Sketch(inputs={"x": ["rows", 4, 8, 8]})  # type: ignore[list-item] # as above
    s.node("Mul", ["x", s.store("k", np.full((4, 8, 8), 3.0))], "y")
    path = tmp_path / "float.onnx"
    write_graph(s.model(), path, external_data_mb=0)
    beside = tmp_path / "ranges.onnx"
    beside.write_bytes(with_extremes(onnx.load(str(path), load_external_data=False)).SerializeToString())
    assert measure(beside, np.ones(SHAPE, np.float32)) == {"x": 1.0, "y": 3.0}
