from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from gacq_deploy.engines.open import open_engine
from gacq_deploy.export.float_graph.simplify import simplify


def _graph(nodes: list[tuple[str, list[str], dict[str, object]]], constants: dict[str, object]) -> ir.Model:
    """Return a chain of nodes from ``x`` to ``output``, each reading the one before at its first input."""
    made, before = [], "x"
    for position, (kind, others, attributes) in enumerate(nodes):
        result = "output" if position == len(nodes) - 1 else f"t{position}"
        made.append(helper.make_node(kind, [before, *others], [result], f"n{position}", **attributes))
        before = result
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 8]) for n in ("x", "output"))
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(made, "g", [x], [y], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return ir.serde.deserialize_model(model)


def _kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def _run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    with open_engine(
        "ort-cpu", ir.serde.serialize_model(model).SerializeToString(), optimize=False
    ) as engine:
        return engine.run({"x": x})["output"]


@pytest.mark.parametrize(
    ("kind", "neutral", "near"),
    [("Add", 0, 1e-9), ("Sub", 0, 1e-9), ("Mul", 1, 1 + 3e-6), ("Div", 1, 1 - 3e-6)],
)
def test_only_what_is_exactly_neutral_goes(kind: str, neutral: float, near: float) -> None:
    """1e-9 is no zero where states are as small: what the library's own rules drop, these keep."""
    for value, stays in ((neutral, False), (near, True)):
        model = _graph([(kind, ["c"], {}), ("Sqrt", [], {})], {"c": np.float32(value)})
        x = np.full((2, 8), 1e-10, np.float32) + (2e-9 if kind == "Sub" else 0)
        before = _run(model, x)
        simplify(model)
        assert _kinds(model) == ([kind, "Sqrt"] if stays else ["Sqrt"])
        np.testing.assert_array_equal(_run(model, x), before)


@pytest.mark.parametrize(("middle", "split"), [(4, True), (3, False)])
def test_two_halves_are_one_split(middle: int, split: bool) -> None:
    constants = {"zero": [0], "middle": [middle], "end": [8], "axis": [-1]}
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 8]) for n in ("x", "output"))
    nodes = [
        helper.make_node("Slice", ["x", "middle", "end", "axis"], ["second"], "s1"),
        helper.make_node("Slice", ["x", "zero", "middle", "axis"], ["first"], "s0"),
        helper.make_node("Concat", ["second", "first"], ["output"], "c", axis=-1),
    ]
    stored = [numpy_helper.from_array(np.asarray(v, np.int64), k) for k, v in constants.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], stored)
    model = ir.serde.deserialize_model(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    )
    values = np.arange(16, dtype=np.float32).reshape(2, 8)
    before = _run(model, values)
    simplify(model)
    assert _kinds(model) == (["Split", "Concat"] if split else ["Slice", "Slice", "Concat"])
    np.testing.assert_array_equal(_run(model, values), before)


def test_initializers_without_values_are_left() -> None:
    model = _graph([("Add", ["w"], {}), ("Mul", ["w"], {})], {"w": np.zeros(8, np.float32)})
    model.graph.initializers["w"].const_value = None
    simplify(model)
    assert _kinds(model) == ["Add", "Mul"]
    assert model.graph.initializers["w"].const_value is None
