"""Does the data of a stored tensor fit what the tensor says of itself?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper

_MOST_AXES = 64
"""NumPy ends there; engines end long before."""
_MOST_VALUES = 2**60
"""More than any address space holds; NumPy refuses the shape even where an axis of length 0 empties it."""
_SHARED_BYTES: dict[int, int] = {
    TensorProto.INT4: 4, TensorProto.UINT4: 4, TensorProto.FLOAT4E2M1: 4, TensorProto.INT2: 2, TensorProto.UINT2: 2,
    TensorProto.FLOAT6E2M3: 6, TensorProto.FLOAT6E3M2: 6,
}  # fmt: skip
"""Bits of a value, where several values share a byte."""
_COMPLEX = (TensorProto.COMPLEX64, TensorProto.COMPLEX128)
_KINDS = {number: name.lower() for name, number in TensorProto.DataType.items() if number}
_FIELDS = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")


def tensors_in(graph: GraphProto) -> Iterator[TensorProto]:
    """Yield every tensor stored in a graph, in its nodes and in the graphs inside them."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from tensors_of(graph.node)


def tensors_of(nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
    """Yield every tensor stored in nodes and in the graphs inside them."""
    for node in nodes:
        for attribute in node.attribute:
            yield from _tensors_of_attribute(attribute)


def _tensors_of_attribute(attribute: AttributeProto) -> Iterator[TensorProto]:
    match attribute.type:
        case AttributeProto.TENSOR:
            yield attribute.t
        case AttributeProto.TENSORS:
            yield from attribute.tensors
        case AttributeProto.SPARSE_TENSOR:
            yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
        case AttributeProto.GRAPH:
            yield from tensors_in(attribute.g)
        case AttributeProto.GRAPHS:
            for graph in attribute.graphs:
                yield from tensors_in(graph)


def is_element_type(number: int) -> bool:
    """Tell whether ONNX has an element type of this number."""
    return number in _KINDS


def type_text(number: int) -> str:
    """Return an ONNX element type as text."""
    return _KINDS.get(number) or f"type {number}"


def damage_of(tensor: TensorProto) -> str:
    """Return what is wrong with a stored tensor; "" for nothing."""
    if not is_element_type(tensor.data_type):
        return f"is of the unknown element type {tensor.data_type}"
    if len(tensor.dims) > _MOST_AXES:
        return f"has {len(tensor.dims)} axes; {_MOST_AXES} are the most"
    if (
        any(size < 0 for size in tensor.dims)
        or math.prod(max(size, 1) for size in tensor.dims) > _MOST_VALUES
    ):
        return f"has the shape {list(tensor.dims)}"
    return _damage_of_data(tensor)


def _damage_of_data(tensor: TensorProto) -> str:
    if tensor.data_location == TensorProto.EXTERNAL and not tensor.external_data:
        return ""  # a shape without values, which no file can hold
    if tensor.HasField("segment"):
        return "is one segment of a tensor"
    # unlike enum members, numbers are what the package's own tables are made of
    number, count = int(tensor.data_type), math.prod(tensor.dims)
    kind, field = type_text(number), str(helper.tensor_dtype_to_field(number))
    filled = [name for name in _FIELDS if len(getattr(tensor, name))]
    filled += ["raw_data"] if tensor.HasField("raw_data") else []
    if tensor.data_location == TensorProto.EXTERNAL:
        filled = ["another file", *filled]
    if filled in (["raw_data"], ["another file"]) and number != TensorProto.STRING:
        bits = _SHARED_BYTES.get(number) or 8 * int(helper.tensor_dtype_to_np_dtype(number).itemsize)
        wanted, given, unit = -(-count * bits // 8), _bytes_given(tensor), "bytes"
    elif filled in ([], [field]):
        # 2 and 4 bits are packed here, too, 6 are not, and a complex value is two entries
        bits = _SHARED_BYTES.get(number, 8)
        entries = -(-count * bits // 8) if bits in (2, 4) else count * (1 + (number in _COMPLEX))
        wanted, given, unit = entries, len(getattr(tensor, field)), "values"
    else:
        return f"keeps its {kind} values in {' and '.join(filled)}, not in raw_data or {field} alone"
    return (
        "" if given == wanted else f"holds {given} {unit}; {kind} of shape {list(tensor.dims)} takes {wanted}"
    )


def _bytes_given(tensor: TensorProto) -> int:
    if tensor.data_location != TensorProto.EXTERNAL:
        return len(tensor.raw_data)
    return next((int(entry.value) for entry in tensor.external_data if entry.key == "length"), 0)
