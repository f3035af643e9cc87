"""What does a Q/DQ graph look like to a rule? Quantizers, dequantizers, scales, and the layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx
from onnx import NodeProto, TensorProto

from gacq_deploy.graph.index import DEQUANTIZE, QUANTIZE, GraphIndex, attribute
from gacq_deploy.spec import Array

LAYERS = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class Reach:
    """Through which operators an engine still connects a dequantizer with the layer behind it.

    ``moves`` hand on their first input's values; ``joins`` write only values that some input has;
    ``factors``: a product with one stored number goes into the scale.
    """

    moves: frozenset[str]
    joins: frozenset[str]
    factors: bool = False


_MOVES = frozenset(("Identity", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Cast"))
NEAR = Reach(_MOVES, frozenset(("Concat", "MaxPool", "Resize")))
"""Of most engines."""
FAR = Reach(
    _MOVES
    | {
        "Dropout",
        "Slice",
        "Split",
        "Gather",
        "DepthToSpace",
        "SpaceToDepth",
        "Expand",
        "Tile",
        "Pad",
        "Neg",
        "Abs",
    },
    frozenset(("Concat", "MaxPool", "GlobalMaxPool")),
    factors=True,
)
"""Of TensorRT's compiler, which on the other hand does not take a Resize along."""


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
    """A graph as the lint rules see it, through the eyes of one engine."""

    def __init__(self, model: onnx.ModelProto, reach: Reach = NEAR) -> None:
        self.index = GraphIndex(model)
        self._reach = reach
        self._leaves: dict[str, dict[str, Linear | None]] = {}
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
        casts = 0
        while node is not None and (origin := self.handed_on(node)) is not None:
            casts += node.op_type == "Cast"
            node = self.index.producer(origin)
        # two casts are a rounding of their own
        if node is None or node.op_type != DEQUANTIZE or casts > 1:
            return None
        return self._linear(node)

    def handed_on(self, node: NodeProto) -> str | None:
        """Return the input whose values an operator hands on, or None where it makes new ones."""
        if node.op_type == "Pad":
            # zero is a value of every symmetric scale; another border would need one of its own
            value = self.index.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
            zero = attribute(node, "mode", b"constant") != b"constant" or value is None or not np.any(value)
            return node.input[0] if zero and "Pad" in self._reach.moves else None
        if node.op_type in self._reach.moves:
            return str(node.input[0])
        if self._reach.factors and node.op_type in ("Mul", "Div"):
            # the number may be either factor of a product, but of a quotient only the divisor
            for data, factor in ((0, 1), (1, 0))[: 2 if node.op_type == "Mul" else 1]:
                stored = self.index.constant(node.input[factor])
                if stored is not None and stored.size == 1:
                    return str(node.input[data])
        return None

    def joined(self, node: NodeProto) -> list[str]:
        """Return the inputs that an operator joins into one tensor; none if it does not."""
        if node.op_type not in self._reach.joins:
            return []
        return list(node.input) if node.op_type == "Concat" else [node.input[0]]

    def leaves(self, tensor: str) -> list[Linear | None]:
        """Return the DQs that a tensor's values come from, through moves and joins; None for a float source."""
        return list(self._leaves_of(tensor).values())

    def _leaves_of(self, tensor: str) -> dict[str, Linear | None]:
        if tensor not in self._leaves:
            item, node = self.dequantizer(tensor), self.index.producer(tensor)
            while node is not None and (origin := self.handed_on(node)) is not None:
                node = self.index.producer(origin)
            branches = self.joined(node) if item is None and node is not None else []
            found: dict[str, Linear | None] = {}
            for name in branches:
                found.update(self._leaves_of(name))
            if not branches:
                found[item.node.output[0] if item else ""] = item
            self._leaves[tensor] = found
        return self._leaves[tensor]

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
        return all(leaf is not None and not self.is_weight(leaf) for leaf in self.leaves(tensor))

    def weight(self, node: NodeProto) -> Linear | None:
        """Return the weight's DQ of a layer node."""
        item = self.dequantizer(node.input[1]) if len(node.input) > 1 else None
        return item if item is not None and self.is_weight(item) else None

    def stored_weight(self, node: NodeProto) -> bool:
        """Tell whether a layer's second operand is stored, in whatever form (no attention product)."""
        if len(node.input) < 2:
            return False
        return self.weight(node) is not None or not self.index.computed_from(node.input[1])

    def quantized_layers(self) -> Iterator[NodeProto]:
        """Yield the layers with a quantized weight or activation, transposed convolutions included."""
        for node in self.index.of_type(*LAYERS, "ConvTranspose"):
            if self.weight(node) is not None or any(self.is_quantized(name) for name in node.input[:2]):
                yield node

    def is_product(self, node: NodeProto) -> bool:
        """Tell whether a matrix product multiplies two activations."""
        return all(self.index.computed_from(name) for name in node.input[:2])

    def operand_nodes(self, node: NodeProto) -> list[str]:
        """Return the names of a layer and of the nodes that bring it its operands, back to their quantizers."""
        names = [name_of(node)]
        pending = list(reversed(node.input))
        while pending:
            source = self.index.producer(pending.pop())
            if source is None:
                continue
            if source.op_type in (QUANTIZE, DEQUANTIZE):
                names.append(name_of(source))
                pending += source.input[:1] if source.op_type == DEQUANTIZE else []
                continue
            origin = self.handed_on(source)
            branches = [origin] if origin is not None else self.joined(source)
            if branches:
                names.append(name_of(source))
                pending += reversed(branches)
        return names

    def readers(self, tensor: str) -> list[NodeProto]:
        """Return the nodes that read ``tensor``."""
        return [use.node for use in self.index.readers(tensor)]

    def readers_behind(self, tensor: str, *, joins: bool = False) -> list[tuple[NodeProto, int]]:
        """Return the readers of ``tensor`` and their input's position, seen through moves of data (and joins)."""
        found: list[tuple[NodeProto, int]] = []
        pending, seen = [tensor], {tensor}
        while pending:
            name = pending.pop()
            for node, position in self.index.readers(name):
                if self.handed_on(node) == name or (joins and name in self.joined(node)):
                    pending += [o for o in node.output if o not in seen]
                    seen.update(node.output)
                else:
                    found.append((node, position))
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
