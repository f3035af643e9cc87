"""Which element type has each tensor, and which inputs and outputs of an operator may be half?"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto

from gacq_deploy.errors import ExportError
from gacq_deploy.graph.index import (
    DEQUANTIZE,
    HALVES,
    QUANTIZE,
    GraphIndex,
    attribute,
    opset_of,
    without_initializers,
)
from gacq_deploy.spec import Array

FLOAT, HALF = int(TensorProto.FLOAT), int(TensorProto.FLOAT16)
_HALF_TYPE = "tensor(float16)"
_SMALL = 1024
"""Values of a tensor that may be a shape; larger ones tell shape inference nothing."""
_ANY = ("Cast", "Shape", "Size")
"""Operators that read any type and whose output does not follow it."""
_TYPED_BY_ATTRIBUTE = (
    "ConstantOfShape", "EyeLike", "RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike",
    "Bernoulli",
)  # fmt: skip
_EXACT_SOURCES = (FLOAT, TensorProto.BOOL)
"""What a Cast may turn into half without loss that float32 would not have."""


class Slot(NamedTuple):
    """A float32 tensor at an input or output of a node; ``may_be_half`` is None where any type will do."""

    tensor: str
    position: int
    may_be_half: bool | None


class NodeTypes:
    """Element types of a float32 graph's tensors, and what its operators make of half.

    Raises:
        ExportError: a tensor's type cannot be inferred, or tensors are half already.
    """

    def __init__(self, model: ModelProto) -> None:
        self._opset = opset_of(model)
        self._infos = _inferred(model)
        self.of = {name: info.tensor_type.elem_type for name, info in self._infos.items()}
        self.of |= {t.name: t.data_type for t in model.graph.initializer}
        self._half_weights = _half_weights(model)
        index = GraphIndex(model)
        casts = [node for node in index.of_type("Cast") if index.is_widened(node.output[0])]
        _require_float(model, self.of, {node.input[0] for node in casts})

    def info(self, tensor: str) -> onnx.TypeProto | None:
        """Return a tensor's type and shape, as far as they can be inferred."""
        return self._infos.get(tensor)

    def inputs(self, node: NodeProto) -> Iterator[Slot]:
        """Yield the float32 inputs of a node."""
        yield from self._slots(node, "inputs", list(node.input))

    def outputs(self, node: NodeProto) -> Iterator[Slot]:
        """Yield the float32 outputs of a node."""
        yield from self._slots(node, "outputs", list(node.output))

    def turns_exact(self, node: NodeProto) -> bool:
        """Tell whether a node is a Cast of integers (or float64) to float32: numbers that half may not hold."""
        source = self.of.get(node.input[0]) if node.input else None
        return node.op_type == "Cast" and attribute(node, "to", 0) == FLOAT and source not in _EXACT_SOURCES

    def _slots(self, node: NodeProto, side: str, tensors: list[str]) -> Iterator[Slot]:
        formal = _formal_parameters(node, self._opset, side)
        for position, tensor in enumerate(tensors):
            if self.of.get(tensor) == FLOAT:
                yield Slot(tensor, position, self._may_be_half(node, side, position, formal))

    def _may_be_half(self, node: NodeProto, side: str, position: int, formal: list[Any]) -> bool | None:
        if node.op_type in _ANY and side == "inputs":
            return None
        if node.op_type == DEQUANTIZE and node.output[0] in self._half_weights:
            return True
        if node.op_type in (QUANTIZE, DEQUANTIZE, "Constant", *_TYPED_BY_ATTRIBUTE) or self.turns_exact(node):
            return False
        return bool(formal) and _HALF_TYPE in formal[min(position, len(formal) - 1)].types


def stored_floats(index: GraphIndex, tensor: str) -> Array | None:
    """Return the float32 values of an initializer or ``Constant``; None for what is computed or not float32.

    Raises:
        ExportError: the data lies in another file and was not loaded.
    """
    stored = index.tensor(tensor)
    if stored is None:
        node = index.producer(tensor)
        if node is None or node.op_type != "Constant":
            return None
        value = attribute(node, "value_float", attribute(node, "value_floats", None))
        return None if value is None else np.asarray(value, np.float32)
    if stored.data_type != FLOAT:
        return None
    values = index.constant(tensor)
    if values is None:
        raise ExportError(
            f"The data of '{tensor}' is not loaded.", "Read the graph together with its weights."
        )
    return values


def _half_weights(model: ModelProto) -> frozenset[str]:
    """Return the weights dequantized from blocks whose scales half holds exactly: only those may be half.

    With float32 scales and a Cast behind, TensorRT writes the weight out in half before every product, where with half
    scales it dequantizes inside the product.
    """
    blocked = [n for n in model.graph.node if n.op_type == DEQUANTIZE and attribute(n, "block_size", 0)]
    index = GraphIndex(model) if blocked else None
    found = []
    for node in blocked:
        scale = stored_floats(index, node.input[1]) if index is not None else None
        if scale is not None and _exact_in_half(scale):
            found.append(node.output[0])
    return frozenset(found)


def _exact_in_half(values: Array) -> bool:
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    normal = np.abs(half) >= np.finfo(np.float16).tiny
    return bool(np.all(normal & (half.astype(np.float32) == values)))


def lean_copy(model: ModelProto) -> ModelProto:
    """Return the model without the data of its large tensors: what type inference needs."""
    result = without_initializers(model)
    for tensor in model.graph.initializer:
        kept = result.graph.initializer.add()
        size = 1
        for d in tensor.dims:
            size *= d
        if size <= _SMALL:
            kept.CopyFrom(tensor)
        else:
            kept.name, kept.data_type = tensor.name, tensor.data_type
            kept.dims.extend(tensor.dims)
            kept.data_location = TensorProto.EXTERNAL
    return result


def _inferred(model: ModelProto) -> dict[str, onnx.TypeProto]:
    graph = onnx.shape_inference.infer_shapes(lean_copy(model)).graph
    return {i.name: i.type for i in (*graph.value_info, *graph.input, *graph.output)}


def _require_float(model: ModelProto, types: dict[str, int], widened: Collection[str]) -> None:
    unknown = [n for node in model.graph.node for n in node.output if n and not types.get(n)]
    if unknown:
        raise ExportError(
            f"The type of '{unknown[0]}' cannot be inferred; {len(unknown)} such tensors.",
            "Export the graph with standard ONNX operators only.",
        )
    half = [name for name, kind in types.items() if kind in HALVES and name not in widened]
    if half:
        raise ExportError(
            f"The graph already holds {len(half)} half-precision tensors, first '{half[0]}'.",
            "Pass the float32 graph (float.onnx, int8.onnx).",
        )


def _formal_parameters(node: NodeProto, opset: int, side: str) -> list[Any]:
    """Return the operator's declared inputs or outputs; none for operators that ONNX does not know."""
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    except onnx.defs.SchemaError:
        return []
    return list(getattr(schema, side))
