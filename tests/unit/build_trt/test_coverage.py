"""The coverage gate: planned layers against compiled ones."""

from __future__ import annotations

import numpy as np
import pytest

from gacq_deploy.build_trt.coverage import Coverage, check_coverage, holds, measure_coverage
from gacq_deploy.build_trt.layers import CompiledLayer
from gacq_deploy.errors import GateError
from gacq_deploy.export.qdq import insert_qdq
from gacq_deploy.graph.index import set_module
from tests.support.graphs.layer_graphs import LayerGraph, layer_artifact, random_array
from tests.support.graphs.qdq_graphs import int4_blocks


def kernel(*nodes: str, int8: bool = True) -> CompiledLayer:
    kind = "Int8" if int8 else "Half"
    return CompiledLayer("+".join(nodes), "correlation", (kind,), (kind,), ("Half",), "", nodes)


@pytest.fixture(scope="module")
def graph():
    built = LayerGraph()
    for index in range(4):
        name = f"conv{index}"
        built.conv(
            name, "x" if index == 0 else f"y{index - 1}", f"y{index}", random_array(4, 4, 3, 3, seed=index)
        )
    float_graph = built.model(["batch", 4, 8, 8], "y3", ["batch", 4, 8, 8])
    planned = {name: weight for name, weight in built.weights.items() if name != "conv0"}
    artifact = layer_artifact(planned, {f"{name}:input": 0.05 for name in planned})
    return insert_qdq(float_graph, artifact, placement="inputs"), tuple(planned)


def test_all_planned_layers_in_int8(graph) -> None:
    model, modules = graph
    coverage = measure_coverage(
        model, [kernel("node_y1", "node_y2"), kernel("node_y3"), kernel("node_y0", int8=False)], modules
    )
    assert (coverage.planned, coverage.int8, coverage.share, coverage.lost) == (3, 3, 1.0, ())
    assert coverage.kernels["int8"] == 2
    assert coverage.kernels["float_product"] == 1
    check_coverage(coverage.document(), 1.0)


def test_a_fallback_is_named_with_its_kernel(graph) -> None:
    model, modules = graph
    coverage = measure_coverage(model, [kernel("node_y1"), kernel("node_y2", int8=False)], modules)
    assert coverage.int8 == 1
    by_name = {node.module: node for node in coverage.lost}
    assert by_name["conv2"].kernel == "correlation Half x Half"
    assert by_name["conv3"].kernel == "in no kernel the compiler lists"
    assert by_name["conv2"].rule == "unexplained"
    with pytest.raises(
        GateError, match=r"1 of 3 planned layers .*95.0% are required[\s\S]*conv2[\s\S]*conv3"
    ):
        check_coverage(coverage.document(), 0.95)
    check_coverage(coverage.document(), 0.33)


def test_the_lints_rule_explains_a_fallback(graph) -> None:
    model, modules = graph
    broken = type(model).FromString(model.SerializeToString())
    for node in broken.graph.node:
        if node.name == "conv2:weight/DequantizeLinear":
            next(a for a in node.attribute if a.name == "axis").i = 1
    coverage = measure_coverage(broken, [kernel("node_y1"), kernel("node_y3")], modules)
    (lost,) = coverage.lost
    assert (lost.module, lost.rule) == ("conv2", "weight-axis")
    assert "falls back" in lost.why


def test_without_a_plan_every_quantized_layer_counts(graph) -> None:
    model, _ = graph
    assert measure_coverage(model, []).planned == 3
    empty = LayerGraph()
    empty.conv("conv", "x", "y", np.ones((4, 4, 3, 3), np.float32))
    coverage = measure_coverage(empty.model(["batch", 4, 8, 8], "y", ["batch", 4, 8, 8]), [])
    assert (coverage.planned, coverage.share) == (0, 0.0)


def product(*nodes: str, constants: tuple[str, ...] = ("Int4", "Half")) -> CompiledLayer:
    return CompiledLayer("+".join(nodes), "runtime_fusion", ("Half",), constants, ("Half",), "", nodes)


WEIGHT = "w/DQ"


@pytest.mark.parametrize("named", [True, False], ids=["planned", "unplanned"])
@pytest.mark.parametrize(
    ("layers", "kept", "fused"),
    [
        ([product(WEIGHT, "layer")], 1, 1),
        ([product(WEIGHT), product("layer", constants=())], 1, 0),
        ([product(WEIGHT, "layer", constants=("Half",))], 0, 0),
        ([product("layer", constants=("Half",))], 0, 0),
        ([product("other"), kernel("layer")], 0, 0),
    ],
    ids=["in-product", "before-product", "folded", "codes-gone", "in-another-layer"],
)
def test_int4_weights_count_apart(layers: list[CompiledLayer], kept: int, fused: int, named: bool) -> None:
    model = int4_blocks(32)
    set_module(model.graph.node[-1], "m")
    coverage = measure_coverage(model, layers, ("m",) if named else None)
    said = coverage.document()
    assert (said["planned"], said["int8"], said["share"], said["lost"]) == (0, 0, 1.0, [])
    weights = said["weight_only"]
    assert (weights["planned"], weights["int4"], weights["in_product"]) == (1, kept, fused)
    assert holds(said, 0.95) == bool(kept)
    if kept:
        check_coverage(said, 1.0)
        return
    with pytest.raises(GateError, match=r"0 of 1 planned weights are INT4[\s\S]*layer \(MatMul of m\)"):
        check_coverage(said, 0.95)


def test_int4_weights_do_not_make_up_for_lost_int8_layers(graph) -> None:
    model, modules = graph
    lost = measure_coverage(model, [kernel("node_y1", int8=False)], modules)
    weights = measure_coverage(int4_blocks(32), [product(WEIGHT, "layer")]).weight_only
    both = Coverage(lost.nodes, lost.kernels, weights * 97)
    assert not holds(both.document(), 0.95)
    with pytest.raises(GateError, match="0 of 3 planned layers compiled to INT8"):
        check_coverage(both.document(), 0.95)


def test_a_target_without_the_kernel_is_the_reason(graph) -> None:
    model, modules = graph
    fallen = [kernel("node_y1", "node_y2", "node_y3", int8=False)]
    lost = measure_coverage(model, fallen, modules, targets=("7.5", "8.6")).lost
    assert {node.rule for node in lost} == {"target"}
    assert "7.5" in lost[0].why
    assert {node.rule for node in measure_coverage(model, fallen, modules, targets=("8.6",)).lost} == {
        "unexplained"
    }
