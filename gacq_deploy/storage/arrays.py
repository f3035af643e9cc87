"""How do named arrays lie in one file, and how are they written and read without a second copy of them?

The format is safetensors': the header's length in 8 bytes, the header in JSON, the tensors one behind the other. The
library itself holds all tensors twice while it writes or reads them.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from gacq_deploy.errors import ArtifactError
from gacq_deploy.spec import Array
from gacq_deploy.storage.digests import held
from gacq_deploy.storage.documents import MOST_BYTES, Malformed, decode_json, shown
from gacq_deploy.storage.files import atomic_path
from gacq_deploy.storage.memory import lack_of_memory

_CODES = {
    "uint64": "U64", "int64": "I64", "float64": "F64", "complex64": "C64", "float32": "F32", "uint32": "U32",
    "int32": "I32", "float16": "F16", "uint16": "U16", "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
"""Numpy's name of a type -> safetensors', in the order in which the library lays tensors out."""
_DTYPES = {code: np.dtype(name) for name, code in _CODES.items()}
_ORDER = list(_CODES)
_METADATA = "__metadata__"
_MAPPED_BYTES = 1 << 16
"""From this size on an array stays in its file."""


class ArrayPlace(NamedTuple):
    """Where an array lies in a file: its type, its shape, and the byte at which it begins."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int


def array_header(layout: Mapping[str, tuple[str, tuple[int, ...]]], *, schema: str) -> tuple[bytes, int]:
    """Return what stands before arrays that lie in this order, and how many bytes they have.

    More than one metadata entry would make the library's bytes differ from run to run: ``schema`` is the only one.

    Args:
        layout: name -> (numpy's name of the type, shape).
        schema: what the file is.
    """
    header: dict[str, Any] = {_METADATA: {"schema": schema}}
    offset = 0
    for name, (dtype, shape) in layout.items():
        size = math.prod(shape) * np.dtype(dtype).itemsize
        header[name] = {
            "dtype": _CODES[dtype],
            "shape": list(shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    # tensors begin at a multiple of 8 bytes, so that mapped numbers are aligned
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, offset


def array_places(file: BinaryIO) -> dict[str, ArrayPlace]:
    """Return where the arrays of an open file lie; none overlap, and together they are all that it holds.

    Raises:
        Malformed: it is none of this format, or it is not whole.
    """
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if not 0 < length <= min(size - 8, MOST_BYTES):
        raise Malformed(f"a header of {length:,} bytes in a file of {size:,}")
    header = decode_json(file.read(length))
    if not isinstance(header, dict):
        raise Malformed("its header is no object")
    begin = 8 + length
    places = {name: _place(name, entry, begin) for name, entry in header.items() if name != _METADATA}
    end = begin
    for name, place in sorted(places.items(), key=lambda item: (item[1].offset, math.prod(item[1].shape))):
        if place.offset != end:
            raise Malformed(f"array '{shown(name)}' does not begin where the one before it ends")
        end += math.prod(place.shape) * place.dtype.itemsize
    if end != size:
        raise Malformed(f"its arrays end at byte {end:,}, the file at {size:,}")
    return places


def _place(name: str, entry: Any, begin: int) -> ArrayPlace:
    match entry:
        case {"dtype": str(code), "shape": [*shape], "data_offsets": [int(first), int(end)]} if (
            code in _DTYPES and all(isinstance(side, int) and side >= 0 for side in shape) and first >= 0
        ):
            dtype = _DTYPES[code]
            if end - first == math.prod(shape) * dtype.itemsize:
                return ArrayPlace(dtype, tuple(shape), begin + first)
    raise Malformed(f"what its header says of array '{shown(name)}' does not fit together")


def save_arrays(path: Path, arrays: Mapping[str, Array], *, schema: str) -> None:
    """Write a safetensors file atomically, one array after the other, with one metadata entry (``schema``).

    The bytes are those that the library writes of contiguous arrays.

    Raises:
        ResourceError: the disk is full.
        UsageError: the folder cannot be written.
    """
    names = sorted(arrays, key=lambda name: (_ORDER.index(arrays[name].dtype.name), name))
    head, size = array_header({n: (arrays[n].dtype.name, np.shape(arrays[n])) for n in names}, schema=schema)
    with atomic_path(path, len(head) + size) as temp, temp.open("wb") as file:
        file.write(head)
        for name in names:
            little = np.ascontiguousarray(arrays[name], arrays[name].dtype.newbyteorder("<"))
            file.write(little.reshape(-1).view(np.uint8).data)


def map_arrays(path: Path, *, what: str, hint: str, sha256: str | None = None) -> dict[str, Array]:
    """Return the arrays of a safetensors file, read-only; large ones stay in the file and are read when used.

    With a digest, the file is hashed through the descriptor that is mapped, before anything is parsed. A file that is
    replaced later does not change the arrays; one that is written in place does.

    Raises:
        ArtifactError: missing, truncated, malformed, or not of that digest.
        ResourceError: no address space is left for it.
    """
    try:
        with path.open("rb") if sha256 is None else held(path, sha256, what=what, hint=hint) as file:
            places = array_places(file)
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            return {name: _read_only(data, place) for name, place in places.items()}
    except FileNotFoundError:
        raise ArtifactError(f"{what} is missing: {path}", hint) from None
    except (OSError, ValueError, Malformed) as error:
        raise lack_of_memory(error, f"Reading {path}") or ArtifactError(
            f"{what} {path} is not a whole safetensors file: {error}", hint
        ) from error


def load_arrays(path: Path, *, what: str, hint: str, sha256: str | None = None) -> dict[str, Array]:
    """Return what :func:`map_arrays` does in memory, to be written to.

    Raises:
        ArtifactError, ResourceError: as :func:`map_arrays`.
    """
    mapped = map_arrays(path, what=what, hint=hint, sha256=sha256)
    return {name: np.array(value) for name, value in mapped.items()}


def _read_only(data: mmap.mmap, place: ArrayPlace) -> Array:
    array: Array = np.ndarray(place.shape, place.dtype, data, place.offset)
    if array.nbytes < _MAPPED_BYTES:
        array = array.copy()
        array.flags.writeable = False
    return array
