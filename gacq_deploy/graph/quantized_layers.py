"""Which layers of a graph have integer weights?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from onnx import ModelProto, NodeProto, TensorProto

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
CODES = ":weight.codes"
"""Behind a module's name: its codes in an exported graph."""
_INTEGERS = (TensorProto.INT8, TensorProto.UINT8, TensorProto.INT4, TensorProto.UINT4)


@dataclass(frozen=True)
class GraphLayer:
    """A Conv, Gemm or MatMul with integer weights: node name, op type, name of the codes initializer."""

    node: str
    op_type: str
    codes: str


def graph_layers(proto: ModelProto) -> tuple[GraphLayer, ...]:
    """Return the layers whose weight is an integer initializer behind DequantizeLinear, in graph order."""
    return tuple(GraphLayer(node.name, node.op_type, dq.input[0]) for node, dq in weighted_nodes(proto))


def weighted_nodes(proto: ModelProto) -> Iterator[tuple[NodeProto, NodeProto]]:
    """Yield each node with an integer weight, and the DequantizeLinear between the codes and it."""
    codes = {i.name for i in proto.graph.initializer if i.data_type in _INTEGERS and i.dims}
    weights = {
        node.output[0]: node
        for node in proto.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in codes
    }
    for node in proto.graph.node:
        if node.op_type in WEIGHTED and node.input[1] in weights:
            yield node, weights[node.input[1]]
