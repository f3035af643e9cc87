"""What does a Q/DQ graph look like to a rule? Quantizers, dequantizers, scales, and the layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import onnx
from onnx import NodeProto, TensorProto

from gacq_deploy.export.graph import DEQUANTIZE, QUANTIZE, GraphIndex, attribute
from gacq_deploy.storage import Array

LAYERS = ("Conv", "Gemm", "MatMul")
# data moves through these unchanged: a dequantizer before one of them still feeds the layer after it
_PASSIVE = ("Identity", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Cast")
_JOINING = ("Concat", "MaxPool", "Resize")
"""Operators whose output has only values that their inputs have."""


class Hit(NamedTuple):
    """Where a rule applies: node name (or operator and output, when it has none) and the values found."""

    node: str
    detail: str


class Linear(NamedTuple):
    """A ``QuantizeLinear`` or ``DequantizeLinear`` node; None for what is absent or not stored."""

    node: NodeProto
    data: str
    scale: Array | None
    zero_point: Array | None
    zero_point_type: int | None


class QuantView:
    """A graph as the lint rules see it."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.index = GraphIndex(model)
        self.quantizers = [self._linear(n) for n in self.index.of_type(QUANTIZE)]
        self.dequantizers = [self._linear(n) for n in self.index.of_type(DEQUANTIZE)]
        self._types = _element_types(model)

    @property
    def linears(self) -> Iterator[Linear]:
        """Yield every Q and DQ."""
        yield from self.quantizers
        yield from self.dequantizers

    def element_type(self, tensor: str) -> int | None:
        """Return a tensor's ONNX element type, if the graph tells."""
        stored = self.index.tensor(tensor)
        return stored.data_type if stored is not None else self._types.get(tensor)

    def code_type(self, item: Linear) -> int | None:
        """Return the integer type that a Q writes or a DQ reads, if the graph tells."""
        if item.node.op_type == DEQUANTIZE:
            stored = self.element_type(item.data)
            return stored if stored is not None else item.zero_point_type
        if item.zero_point_type is not None:
            return item.zero_point_type
        return attribute(item.node, "output_dtype", 0) or None

    def dequantizer(self, tensor: str) -> Linear | None:
        """Return the DQ behind ``tensor``, seen through operators that only move data."""
        node = self.index.producer(tensor)
        while node is not None and node.op_type in _PASSIVE:
            node = self.index.producer(node.input[0])
        return self._linear(node) if node is not None and node.op_type == DEQUANTIZE else None

    def is_weight(self, item: Linear) -> bool:
        """Tell whether a DQ reads stored codes, or codes quantized from a stored float tensor."""
        return self.index.constant(item.data) is not None or self.float_weight(item) is not None

    def float_weight(self, item: Linear) -> NodeProto | None:
        """Return the Q that quantizes a stored float tensor for this DQ."""
        source = self.index.producer(item.data)
        if source is None or source.op_type != QUANTIZE:
            return None
        return source if self.index.constant(source.input[0]) is not None else None

    def activation(self, tensor: str) -> Linear | None:
        """Return the DQ behind ``tensor`` if it dequantizes an activation."""
        item = self.dequantizer(tensor)
        return item if item is not None and not self.is_weight(item) else None

    def is_quantized(self, tensor: str) -> bool:
        """Tell whether an activation is quantized: by its own pair, or every branch it is joined from."""
        if self.activation(tensor) is not None:
            return True
        node = self.index.producer(tensor)
        if node is None or node.op_type not in _JOINING:
            return False
        branches = node.input if node.op_type == "Concat" else node.input[:1]
        return all(self.is_quantized(name) for name in branches)

    def weight(self, node: NodeProto) -> Linear | None:
        """Return the weight's DQ of a layer node."""
        item = self.dequantizer(node.input[1]) if len(node.input) > 1 else None
        return item if item is not None and self.is_weight(item) else None

    def stored_weight(self, node: NodeProto) -> bool:
        """Tell whether a layer's second operand is stored, in whatever form (no attention product)."""
        if len(node.input) < 2:
            return False
        return self.weight(node) is not None or not self.index.computed_from(node.input[1])

    def readers(self, tensor: str) -> list[NodeProto]:
        """Return the nodes that read ``tensor``."""
        return [use.node for use in self.index.readers(tensor)]

    def readers_behind(self, tensor: str) -> list[tuple[NodeProto, int]]:
        """Return the readers of ``tensor`` and their input's position, seen through moves of data."""
        found: list[tuple[NodeProto, int]] = []
        pending = [tensor]
        while pending:
            for use in self.index.readers(pending.pop()):
                if use.node.op_type in _PASSIVE and use.position == 0:
                    pending.append(use.node.output[0])
                else:
                    found.append((use.node, use.position))
        return found

    def _linear(self, node: NodeProto) -> Linear:
        def at(position: int) -> str:
            return node.input[position] if len(node.input) > position else ""

        stored = self.index.tensor(at(2))
        return Linear(
            node,
            at(0),
            self.index.constant(at(1)),
            self.index.constant(at(2)),
            stored.data_type if stored is not None else None,
        )


def name_of(node: NodeProto) -> str:
    """Return the node's name, or what identifies it where it has none."""
    return node.name or f"{node.op_type} -> {node.output[0] if node.output else '?'}"


def type_name(element_type: int) -> str:
    """Return an ONNX element type as text."""
    return str(TensorProto.DataType.Name(element_type)).lower()


def same_values(one: Array | None, other: Array | None) -> bool:
    """Tell whether two scales are known and equal."""
    return one is not None and other is not None and bool(np.array_equal(one.reshape(-1), other.reshape(-1)))


def _element_types(model: onnx.ModelProto) -> dict[str, int]:
    graph = model.graph
    infos = (*graph.input, *graph.output, *graph.value_info)
    types = {i.name: i.type.tensor_type.elem_type for i in infos if i.type.tensor_type.elem_type}
    for node in graph.node:
        if node.op_type == QUANTIZE and len(node.input) > 2:
            stored = next((t for t in graph.initializer if t.name == node.input[2]), None)
            if stored is not None:
                types.setdefault(node.output[0], stored.data_type)
    return types
