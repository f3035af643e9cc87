"""What does a Q/DQ graph look like to a rule? Quantizers, dequantizers, scales, and the layers."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx
from onnx import NodeProto

from gacq_deploy.graph.index import DEQUANTIZE, QUANTIZE, GraphIndex, attribute
from gacq_deploy.graph.nodes import operand
from gacq_deploy.lint.flow import Flow, UseFilter
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
    """A ``QuantizeLinear`` or ``DequantizeLinear`` node; None for what is absent or not stored.

    ``code_type`` is the integer type that a Q writes or a DQ reads, if the graph tells; ``stored``: the data stands in
    the file; ``block`` is 0 without blocks of scales.
    """

    node: NodeProto
    data: str
    scale_name: str
    scale: Array | None
    zero_name: str
    zero_point: Array | None
    zero_point_type: int | None
    code_type: int | None
    stored: bool
    axis: int
    block: int


class Branches(NamedTuple):
    """What a tensor is joined from: one branch, or several.

    ``quantized``: every branch is an activation behind a dequantizer. ``dequantizers`` are their outputs, the first
    ``MOST_BRANCHES`` in the alphabet; ``scale`` names the scale of one of them, ``alike``: all scales are equal.
    """

    quantized: bool
    dequantizers: tuple[str, ...] = ()
    scale: str = ""
    alike: bool = True


MOST_BRANCHES = 64
"""More are not counted: no list may grow with the graph."""
_FLOAT = Branches(quantized=False)


class QuantView:
    """A graph as the lint rules see it, through the eyes of one engine.

    Args:
        graph: well formed (``graph/wellformed.py``), or its index.
        reach: of the engine.
    """

    def __init__(self, graph: onnx.ModelProto | GraphIndex, reach: Reach = NEAR) -> None:
        self.index = graph if isinstance(graph, GraphIndex) else GraphIndex(graph)
        self._reach = reach
        self._numbers: dict[str, Array | None] = {}
        self._equal: dict[tuple[str, str], bool] = {}
        self._types = _element_types(self.index)
        self.quantizers = [self._linear(n) for n in self.index.of_type(QUANTIZE)]
        self.dequantizers = [self._linear(n) for n in self.index.of_type(DEQUANTIZE)]
        self._written = {name: item for item in self.dequantizers for name in item.node.output if name}
        self._flow = Flow(self.index, self._handed_on, self._joined)
        self._branches: dict[str, Branches] = {}
        for tensor, sources in self._flow.joins():
            self._branches[tensor] = self._join([self.branches(name) for name in sources])

    @property
    def linears(self) -> Iterator[Linear]:
        """Yield every Q and DQ."""
        yield from self.quantizers
        yield from self.dequantizers

    def element_type(self, tensor: str) -> int | None:
        """Return a tensor's ONNX element type, if the graph tells."""
        stored = self.index.tensor(tensor)
        return stored.data_type if stored is not None else self._types.get(tensor)

    def numbers(self, tensor: str) -> Array | None:
        """Return the values of a stored scale, zero point or bias, read once however many nodes share it; else None."""
        if tensor not in self._numbers:
            self._numbers[tensor] = self.index.constant(tensor)
        return self._numbers[tensor]

    def same_numbers(self, one: str, other: str) -> bool:
        """Tell whether two tensors are stored and have equal values."""
        if (one, other) not in self._equal:
            a, b = self.numbers(one), self.numbers(other)
            if a is None or b is None:
                self._equal[one, other] = False
            else:
                self._equal[one, other] = bool(np.array_equal(a.reshape(-1), b.reshape(-1)))
        return self._equal[one, other]

    def is_stored(self, tensor: str) -> bool:
        """Tell whether the values of a tensor stand in the file."""
        return self.index.tensor(tensor) is not None

    def stored_shape(self, tensor: str) -> tuple[int, ...] | None:
        """Return the shape of a stored tensor, whose values are not read; else None."""
        stored = self.index.tensor(tensor)
        return None if stored is None else tuple(stored.dims)

    def dequantizer(self, tensor: str) -> Linear | None:
        """Return the DQ behind ``tensor``, seen through operators that only move data."""
        origin = self._flow.origin(tensor)
        # two casts are a rounding of their own
        return self._written.get(origin.tensor) if origin.casts <= 1 else None

    def source(self, tensor: str) -> NodeProto | None:
        """Return the node that made a tensor's values, seen through moves and the first branch of each join."""
        return self.index.producer(self._flow.first_source(tensor))

    def first_named(self, node: NodeProto, names: Collection[str]) -> str | None:
        """Return which of ``names`` stands first among a layer and what brings its operands (:class:`Flow`)."""
        return self._flow.first_named(node, names)

    def reader_behind(self, tensor: str, wanted: UseFilter, *, joins: bool = False) -> NodeProto | None:
        """Return the first reader of ``tensor`` that is wanted, seen through moves and joins (:class:`Flow`)."""
        return self._flow.reader_behind(tensor, wanted, joins=joins)

    def branches(self, tensor: str) -> Branches:
        """Return what a tensor's values come from, through moves and joins."""
        item = self.dequantizer(tensor)
        if item is not None:
            return Branches(not self.is_weight(item), (item.node.output[0],), item.scale_name)
        return self._branches.get(self._flow.origin(tensor).tensor, _FLOAT)

    def _join(self, parts: Sequence[Branches]) -> Branches:
        distinct = list(dict.fromkeys(parts))
        if len(distinct) == 1:
            return distinct[0]
        known = [part for part in distinct if part.dequantizers]
        names = {name for part in known for name in part.dequantizers}
        return Branches(
            all(part.quantized for part in distinct),
            tuple(sorted(names)[:MOST_BRANCHES]),
            known[0].scale if known else "",
            all(part.alike and self.same_numbers(known[0].scale, part.scale) for part in known),
        )

    def _handed_on(self, node: NodeProto) -> str | None:
        """Return the input whose values an operator hands on, or None where it makes new ones."""
        if node.op_type == "Pad":
            # zero is a value of every symmetric scale; another border would need one of its own
            value = self.numbers(operand(node, 2))
            zero = attribute(node, "mode", b"constant") != b"constant" or value is None or not np.any(value)
            return operand(node, 0) if zero and "Pad" in self._reach.moves else None
        if node.op_type in self._reach.moves:
            return operand(node, 0)
        if self._reach.factors and node.op_type in ("Mul", "Div"):
            # the number may be either factor of a product, but of a quotient only the divisor
            for data, factor in ((0, 1), (1, 0))[: 2 if node.op_type == "Mul" else 1]:
                shape = self.stored_shape(operand(node, factor))
                if shape is not None and math.prod(shape) == 1:
                    return operand(node, data)
        return None

    def _joined(self, node: NodeProto) -> list[str]:
        """Return the inputs that an operator joins into one tensor; none if it does not."""
        if node.op_type not in self._reach.joins:
            return []
        return list(node.input) if node.op_type == "Concat" else [operand(node, 0)]

    def is_weight(self, item: Linear) -> bool:
        """Tell whether a DQ reads stored codes, or codes quantized from a stored float tensor."""
        return item.stored or self.float_weight(item) is not None

    def float_weight(self, item: Linear) -> NodeProto | None:
        """Return the Q that quantizes a stored float tensor for this DQ."""
        source = self.index.producer(item.data)
        if source is None or source.op_type != QUANTIZE:
            return None
        return source if self.is_stored(operand(source, 0)) else None

    def activation(self, tensor: str) -> Linear | None:
        """Return the DQ behind ``tensor`` if it dequantizes an activation."""
        item = self.dequantizer(tensor)
        return item if item is not None and not self.is_weight(item) else None

    def is_quantized(self, tensor: str) -> bool:
        """Tell whether an activation is quantized: by its own pair, or every branch it is joined from."""
        return self.branches(tensor).quantized

    def weight(self, node: NodeProto) -> Linear | None:
        """Return the weight's DQ of a layer node."""
        item = self.dequantizer(operand(node, 1))
        return item if item is not None and self.is_weight(item) else None

    def stored_weight(self, node: NodeProto) -> bool:
        """Tell whether a layer's second operand is stored, in whatever form (no attention product)."""
        if len(node.input) < 2:
            return False
        return self.weight(node) is not None or not self.index.computed_from(operand(node, 1))

    def quantized_layers(self) -> Iterator[NodeProto]:
        """Yield the layers with a quantized weight or activation, transposed convolutions included."""
        for node in self.index.of_type(*LAYERS, "ConvTranspose"):
            if self.weight(node) is not None or any(self.is_quantized(name) for name in node.input[:2]):
                yield node

    def is_product(self, node: NodeProto) -> bool:
        """Tell whether a matrix product multiplies two activations."""
        return all(self.index.computed_from(name) for name in node.input[:2])

    def readers(self, tensor: str) -> list[NodeProto]:
        """Return the nodes that read ``tensor``."""
        return [use.node for use in self.index.readers(tensor)]

    def _linear(self, node: NodeProto) -> Linear:
        data, scale, zero = (operand(node, position) for position in range(3))
        stored = self.index.tensor(zero)
        zero_point_type = None if stored is None else stored.data_type
        if node.op_type == QUANTIZE:
            code_type = zero_point_type or attribute(node, "output_dtype", 0) or None
        else:
            code_type = self.element_type(data) or zero_point_type
        return Linear(
            node,
            data,
            scale,
            self.numbers(scale),
            zero,
            self.numbers(zero),
            zero_point_type,
            code_type,
            stored=self.is_stored(data),
            axis=attribute(node, "axis", 1),
            block=attribute(node, "block_size", 0),
        )


def _element_types(index: GraphIndex) -> dict[str, int]:
    graph = index.model.graph
    infos = (*graph.input, *graph.output, *graph.value_info)
    types = {i.name: i.type.tensor_type.elem_type for i in infos if i.type.tensor_type.elem_type}
    for node in index.of_type(QUANTIZE):
        stored = index.initializers.get(operand(node, 2))
        if stored is not None:
            types.setdefault(node.output[0], stored.data_type)
    return types
