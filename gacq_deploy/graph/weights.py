"""Where do the values of a stored tensor lie, and what are they? In the graph, or in a file that is mapped when asked.

A graph of any size fits into memory as long as its weights stay in their file. ONNX's own fields say where: location,
offset and length, and ``basepath``, the folder that the location counts from. The last is set in memory alone: a file
never holds it, and what a file says of it is forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from gacq_deploy.graph.stored import tensors_in, tensors_of
from gacq_deploy.spec import Array

FOLDER = "basepath"
"""Key of the folder that a location counts from, as ONNX calls it."""
SMALLEST_EXTERNAL = 1024
"""Bytes of a weight below which it stays in the graph, as in onnx's own writer."""
PLACE_KEYS = ("location", "offset", "length")
"""What a file says of a tensor that lies in another."""
_STORED_AS = "stored"
"""Key, in memory alone, of the element type that float32 values have in their file."""
_PACKED = (TensorProto.INT4, TensorProto.UINT4)
"""Types of which two values share a byte."""
_LARGE = 2**20
"""Bytes: scales and zero points, a number for each channel, are no larger."""
ALIGNMENT = 4096
"""ONNX asks for offsets that are multiples of a page, so that a reader can map the weights."""


def to_array(tensor: TensorProto) -> Array:
    """Return a stored tensor as a numpy array; one that lies in a file is mapped from it, and read-only.

    Raises:
        ValueError: its values are nowhere (:func:`has_values`).
    """
    if tensor.data_location != TensorProto.EXTERNAL:
        return np.asarray(numpy_helper.to_array(tensor))
    if not has_values(tensor):
        raise ValueError(f"tensor '{tensor.name}' is a shape without values")
    data = raw_bytes(tensor)
    kind = next((int(e.value) for e in tensor.external_data if e.key == _STORED_AS), 0)
    if kind:
        half = helper.tensor_dtype_to_np_dtype(kind)
        return data.view(half).reshape(tensor.dims).astype(np.float32)
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    shape = tuple(tensor.dims)
    if data.nbytes == dtype.itemsize * int(np.prod(shape, dtype=np.int64)):
        return data.view(dtype).reshape(shape)
    # several values share a byte
    packed = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=shape, raw_data=data.tobytes())
    return np.asarray(numpy_helper.to_array(packed))


def raw_bytes(tensor: TensorProto) -> Array:
    """Return the bytes of a tensor that lies in a file, uint8 ``[length]``, mapped."""
    place = {entry.key: entry.value for entry in tensor.external_data}
    length = int(place["length"])
    if not length:  # nothing can be mapped
        return np.empty(0, np.uint8)
    path = Path(place[FOLDER]) / place["location"]
    return np.asarray(np.memmap(path, np.uint8, "r", int(place.get("offset", 0)), (length,)))


def has_values(tensor: TensorProto) -> bool:
    """Tell whether a tensor has values: a graph may be made of shapes alone, before any weight is read."""
    return tensor.data_location != TensorProto.EXTERNAL or any(
        e.key == "length" for e in tensor.external_data
    )


def is_whole(model: ModelProto) -> bool:
    """Tell whether a model holds all of its weights itself."""
    return all(t.data_location != TensorProto.EXTERNAL for t in model.graph.initializer)


def without_values(name: str, data_type: int, dims: Iterable[int]) -> TensorProto:
    """Return a tensor that is a shape without values."""
    return TensorProto(name=name, data_type=data_type, dims=dims, data_location=TensorProto.EXTERNAL)


def in_file(tensor: TensorProto, path: Path, offset: int, length: int) -> TensorProto:
    """Return ``tensor`` as one whose values lie in a file."""
    found = without_values(tensor.name, tensor.data_type, tensor.dims)
    place = {"location": path.name, "offset": offset, "length": length, FOLDER: path.parent}
    for key, value in place.items():
        found.external_data.add(key=key, value=str(value))
    return found


def set_folder(model: ModelProto, folder: Path | None) -> None:
    """Let every location of a model count from ``folder``; None: from wherever its file lies, as files say it.

    With a folder every tensor has a length, too, which a file may leave out. What else a file says is forgotten.
    """
    for tensor in all_tensors(model):
        if tensor.data_location != TensorProto.EXTERNAL or not tensor.external_data:
            continue
        place = {entry.key: entry.value for entry in tensor.external_data if entry.key in PLACE_KEYS}
        if folder is not None:
            place[FOLDER] = str(folder)
            if "length" not in place:  # ONNX then means all that follows
                size = (folder / place["location"]).stat().st_size
                place["length"] = str(size - int(place.get("offset", 0)))
        del tensor.external_data[:]
        for key, value in place.items():
            tensor.external_data.add(key=key, value=value)


def all_tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Yield every tensor stored in a model, in its functions, too."""
    yield from tensors_in(model.graph)
    for function in model.functions:
        yield from tensors_of(function.node)


def widened(half: TensorProto, name: str) -> TensorProto:
    """Return the float32 tensor of one stored in half precision; values in a file are widened when asked for."""
    if half.data_location != TensorProto.EXTERNAL:
        return stored(to_array(half).astype(np.float32), name)
    found = without_values(name, TensorProto.FLOAT, half.dims)
    found.external_data.extend(half.external_data)
    if has_values(half):
        found.external_data.add(key=_STORED_AS, value=str(half.data_type))
    return found


def with_values(tensor: TensorProto) -> TensorProto:
    """Return a tensor that holds its values itself."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return tensor
    if any(entry.key == _STORED_AS for entry in tensor.external_data):
        return stored(to_array(tensor), tensor.name)
    data = raw_bytes(tensor).tobytes()
    return TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, raw_data=data)


@dataclass(frozen=True)
class WeightFile:
    """An open file that weights are written to, one after the other, as they are made."""

    path: Path
    file: IO[bytes]

    def add(self, tensor: TensorProto) -> TensorProto:
        """Write the values of a tensor; return one that refers to them, or itself if it is too small for that."""
        if any(entry.key == _STORED_AS for entry in tensor.external_data):
            tensor = with_values(tensor)
        outside = tensor.data_location == TensorProto.EXTERNAL
        data = raw_bytes(tensor).data if outside else memoryview(tensor.raw_data)
        return with_values(tensor) if len(data) < SMALLEST_EXTERNAL else self._write(tensor, data)

    def store(self, array: Array, name: str) -> TensorProto:
        """Write an array; as :meth:`add`."""
        number = helper.np_dtype_to_tensor_dtype(array.dtype)
        if array.nbytes < SMALLEST_EXTERNAL or number in _PACKED:
            return self.add(stored(array, name))
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        return self._write(without_values(name, number, array.shape), data)

    def _write(self, tensor: TensorProto, data: memoryview) -> TensorProto:
        self.file.write(bytes(-self.file.tell() % ALIGNMENT))
        offset = self.file.tell()
        self.file.write(data)
        self.file.flush()  # who maps it shall find it
        return in_file(tensor, self.path, offset, len(data))


def shape_if_large(array: Array, name: str) -> TensorProto:
    """Return a large array as a shape without values, a small one with them."""
    if array.nbytes <= _LARGE:
        return stored(array, name)
    return without_values(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)


Store = Callable[[Array, str], TensorProto]
"""Makes a stored tensor of an array and a name."""


def stored(array: Array, name: str) -> TensorProto:
    """Return an array as a tensor that holds its values itself."""
    return numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
