"""A file with INT4 weights holds exactly the artifact's, in the planned blocks, beside a float input."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, helper, numpy_helper

from gacq_deploy.export.qdq import insert_qdq
from gacq_deploy.graph.index import DEQUANTIZE, QUANTIZE
from gacq_deploy.parity.exact import CANONICAL, compare_quantized_file
from gacq_deploy.spec import Array
from tests.support.artifacts.int4_layers import int4_artifact, two_linears


def edit(name: str, change: Callable[[Array], Array]) -> Callable[[ModelProto], None]:
    def spoil(model: ModelProto) -> None:
        (tensor,) = [t for t in model.graph.initializer if t.name == name]
        tensor.CopyFrom(
            numpy_helper.from_array(np.ascontiguousarray(change(numpy_helper.to_array(tensor))), name)
        )

    return spoil


def node(model: ModelProto, name: str) -> NodeProto:
    (found,) = [n for n in model.graph.node if n.name == name]
    return found


def set_attribute(name: str, value: int) -> Callable[[ModelProto], None]:
    def spoil(model: ModelProto) -> None:
        (found,) = [a for a in node(model, "b:weight/DequantizeLinear").attribute if a.name == name]
        assert found.i != value
        found.i = value

    return spoil


def quantize_input(model: ModelProto) -> None:
    """Let the layer read the pair that the integer layer beside it reads."""
    node(model, "node_yb").input[0] = "a:input.dequantized"


def pair_of_its_own(model: ModelProto) -> None:
    parameters = ["a:input.scale", "a:input.zero_point"]
    pair = (
        helper.make_node(QUANTIZE, ["x", *parameters], ["codes"], name=f"b:input/{QUANTIZE}"),
        helper.make_node(DEQUANTIZE, ["codes", *parameters], ["back"], name=f"b:input/{DEQUANTIZE}"),
    )
    node(model, "node_yb").input[0] = "back"
    for step in reversed(pair):
        model.graph.node.insert(0, step)


def nudge(array: Array) -> Array:
    changed = array.copy()
    changed.flat[5] = (
        changed.flat[5] + changed.dtype.type(1) if changed.flat[5] < 7 else changed.dtype.type(0)
    )
    return changed


SPOILS: dict[str, tuple[Callable[[ModelProto], None], str]] = {
    "a code": (edit("b:weight.codes", nudge), "codes: 1 of 192 values differ"),
    "a scale": (
        edit("b:weight.scale", lambda s: np.where(s == s.max(), s * np.float32(1.01), s)),
        "scale: 1 of 12",
    ),
    "int8 codes": (edit("b:weight.codes", lambda c: c.astype(np.int8)), "its codes are not INT4"),
    "transposed scales": (edit("b:weight.scale", lambda s: s.T), "scale: float32"),
    "zero point": (edit("b:weight.zero_point", nudge), "its zero point is not 0"),
    "smaller blocks": (set_attribute("block_size", 8), "in blocks of 8, planned are 16"),
    "other axis": (set_attribute("axis", 1), "its blocks lie along axis 1, the output channels'"),
    "a shared pair": (quantize_input, "was to stay float"),
    "its own pair": (pair_of_its_own, "b:input/QuantizeLinear: a quantizer that is not in the plan"),
}


@pytest.mark.parametrize("name", SPOILS)
def test_what_is_not_the_artifacts_is_named(name: str) -> None:
    spoil, said = SPOILS[name]
    artifact, base = int4_artifact(), two_linears("MatMul")
    model = insert_qdq(base, artifact, placement="input")
    assert compare_quantized_file(artifact, base, model, CANONICAL) == []
    spoiled = onnx.ModelProto.FromString(model.SerializeToString())
    spoil(spoiled)
    found = [str(d) for d in compare_quantized_file(artifact, base, spoiled, CANONICAL)]
    assert any(said in line for line in found), found
