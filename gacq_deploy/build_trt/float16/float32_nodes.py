"""Which nodes must compute in float32 although their operators know half?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from onnx import NodeProto

from gacq_deploy.build_trt.float16.types import FLOAT, NodeTypes, stored_floats
from gacq_deploy.errors import ExportError
from gacq_deploy.graph.index import DEQUANTIZE, QUANTIZE, GraphIndex, module_of
from gacq_deploy.spec import Array

LARGEST_HALF = 65504.0
Float32Reason = Literal["timestep", "angle", "constant", "range", "operator"]
_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum")
_ANGULAR = ("Sin", "Cos")
_SHAPES = ("Shape", "Size")
"""They read no values, so nothing that must be exact passes through them."""
_TIMESTEP = "timestep"
_CARRYING = frozenset({
    "Add", "Sub", "Mul", "Neg", "Where", "Concat", "Expand", "Gather", "Identity", "Pad", "Reshape", "Slice",
    "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
})  # fmt: skip
"""Operators that hand a value outside the range of half on to their readers."""


@dataclass(frozen=True)
class Float32Node:
    """A node that computes in float32 inside a half graph, and why.

    ``timestep``: computed from the timestep or other integers, before the first matrix product. ``angle``: leads
    from an input to a sine. ``constant``: reads a constant that half cannot hold. ``range``: a tensor it reads or
    writes comes near the largest half. ``operator``: ONNX defines it for float32 only.
    """

    node: str
    module: str | None
    why: Float32Reason
    detail: str = ""


def find_float32_nodes(
    index: GraphIndex, types: NodeTypes, ranges: Mapping[str, float], margin: float
) -> dict[str, Float32Node]:
    """Return the nodes of a float32 graph that must stay so, by their first output.

    Args:
        index: the graph, its nodes in topological order and their weights loaded.
        types: of the same graph.
        ranges: largest |x| measured by tensor; what is not in it, or not finite, is taken to fit.
        margin: a tensor fits if ``margin`` times its largest |x| does.

    Raises:
        ExportError: a constant holds NaN.
    """
    search = _Search(index, types, ranges, margin)
    # a node that several of them find keeps the first reason, so the most telling one goes first
    search.exact_numbers()
    search.angles()
    search.wide_tensors()
    search.operators()
    return search.found


class _Problem(NamedTuple):
    """Why half cannot hold a tensor; ``spreads`` if operators that only add or move it hand it on."""

    why: Float32Reason
    detail: str
    spreads: bool = True


class _Search:
    def __init__(
        self, index: GraphIndex, types: NodeTypes, ranges: Mapping[str, float], margin: float
    ) -> None:
        self._index = index
        self._types = types
        self._ranges = ranges
        self._margin = margin
        self._constants: dict[str, _Problem | None] = {}
        self.found: dict[str, Float32Node] = {}

    def exact_numbers(self) -> None:
        """Follow integers that became floats up to the first product, or to where they meet the sample."""
        floats = {name for name in self._index.inputs if self._types.of.get(name) == FLOAT}
        exact = floats & {_TIMESTEP}
        data = floats - exact
        for node in self._index.nodes:
            if node.op_type in _SHAPES:
                continue
            if any(name in data for name in node.input):
                data.update(node.output)
            elif self._types.turns_exact(node) or any(name in exact for name in node.input):
                if node.op_type in _PRODUCTS:
                    data.update(node.output)
                else:
                    exact.update(node.output)
                    self._add(node, "timestep")

    def angles(self) -> None:
        """Mark what leads from a graph input to a sine without a product: sin(1000 x) in half is noise."""
        for node in self._index.of_type(*_ANGULAR):
            path = self._back_to_inputs(node)
            for step in path:
                self._add(step, "angle")

    def wide_tensors(self) -> None:
        """Mark the readers and writers of every tensor that half cannot hold."""
        wide = {
            name: _Problem("range", f"|{name}| reaches {value:.6g}")
            for name, value in self._ranges.items()
            if self._types.of.get(name) == FLOAT and math.isfinite(value) and not self._fits(value)
        }
        for node in self._index.nodes:
            if node.op_type in (QUANTIZE, DEQUANTIZE):
                continue
            for slot in self._types.inputs(node):
                problem = wide.get(slot.tensor) or self._constant_problem(slot.tensor)
                if problem is None or not slot.may_be_half:
                    continue
                self._add(node, problem.why, problem.detail)
                if problem.spreads and node.op_type in _CARRYING:
                    wide.update({name: problem for name in node.output if name not in self._ranges})
            for slot in self._types.outputs(node):
                if slot.tensor in wide:
                    self._add(node, wide[slot.tensor].why, wide[slot.tensor].detail)

    def operators(self) -> None:
        """Mark the nodes that ONNX lets compute in float32 only."""
        for node in self._index.nodes:
            if node.op_type in (QUANTIZE, DEQUANTIZE, "Constant") or self._types.turns_exact(node):
                continue
            if any(slot.may_be_half is False for slot in self._types.outputs(node)):
                self._add(node, "operator", node.op_type)

    def _add(self, node: NodeProto, why: Float32Reason, detail: str = "") -> None:
        floats = [*self._types.inputs(node), *self._types.outputs(node)]
        if floats:
            kept = Float32Node(node.name or node.output[0], module_of(node), why, detail)
            self.found.setdefault(node.output[0], kept)

    def _fits(self, value: float) -> bool:
        return value * self._margin <= LARGEST_HALF

    def _back_to_inputs(self, node: NodeProto) -> Iterable[NodeProto]:
        """Return ``node`` and all float nodes before it; nothing if a product is among them."""
        seen: dict[str, NodeProto] = {}
        pending = [node]
        while pending:
            step = pending.pop()
            if step.op_type in _PRODUCTS:
                return ()
            if step.output[0] in seen or step.op_type in _SHAPES:
                continue
            seen[step.output[0]] = step
            sources = [self._index.producer(slot.tensor) for slot in self._types.inputs(step)]
            pending += [source for source in sources if source is not None]
        return seen.values()

    def _constant_problem(self, tensor: str) -> _Problem | None:
        if tensor not in self._constants:
            values = stored_floats(self._index, tensor)
            self._constants[tensor] = None if values is None else _problem(tensor, values)
        return self._constants[tensor]


def _problem(tensor: str, values: Array) -> _Problem | None:
    """Return why half cannot hold a constant: too large, or a scalar like a norm's epsilon that becomes zero."""
    if np.isnan(values).any():
        raise ExportError(
            f"Constant '{tensor}' holds NaN.", "Repair the model's weights; no precision can run them."
        )
    largest = largest_finite(values)
    if largest > LARGEST_HALF:
        return _Problem("constant", f"|{tensor}| reaches {largest:.6g}")
    if values.size == 1 and values.any() and not values.astype(np.float16).any():
        return _Problem("constant", f"{tensor} is {values.reshape(-1)[0]:.3g}, zero in half", spreads=False)
    return None


def largest_finite(values: Array) -> float:
    """Return the largest finite |x|; 0 for an empty array."""
    if values.size == 0:
        return 0.0
    largest = max(float(values.max()), -float(values.min()))
    if math.isfinite(largest):
        return largest
    finite = values[np.isfinite(values)]
    return float(np.abs(finite).max()) if finite.size else 0.0
