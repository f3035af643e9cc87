"""How do rows reach a file one by one, and back without reading the others?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from gacq_deploy.spec import Array
from gacq_deploy.storage.documents import decode_json
from gacq_deploy.storage.files import atomic_path

_SCHEMA = "gacq-deploy/samples/1"
_DTYPES = {"float32": "F32", "int64": "I64", "uint8": "U8", "bool": "BOOL"}


class Rows(Protocol):
    """Rows of a tensor ``[N, ...]``, in memory or looked up; any index gives an array."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``(N, ...)``."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the values."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Any: ...


class RowFile:
    """A safetensors file whose tensors are mapped, to be read or written in place; whoever made it made it whole."""

    def __init__(self, path: Path, mode: Literal["r", "r+"] = "r+") -> None:
        self.path = path
        # safetensors' format: the header's length in 8 bytes, the header in JSON, the tensors one behind the other
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = decode_json(file.read(length))
        numpy_names = {code: name for name, code in _DTYPES.items()}
        self.tensors: dict[str, Array] = {
            name: np.memmap(
                path, numpy_names[e["dtype"]], mode, 8 + length + e["data_offsets"][0], tuple(e["shape"])
            )
            for name, e in header.items()
            if name != "__metadata__"
        }

    def write(self, start: int, tensors: Mapping[str, Array]) -> None:
        """Write rows ``start ..`` of every named tensor."""
        for name, value in tensors.items():
            self.tensors[name][start : start + len(value)] = value

    def close(self) -> None:
        """Write what is pending and let go."""
        for view in self.tensors.values():
            view.flush()  # type: ignore[attr-defined]
        self.tensors.clear()


class SampleWriter:
    """Streams rows into a safetensors file whose size is known beforehand; whole or absent.

    Use as a context manager; ``write(row, ...)`` fills consecutive rows of every tensor.
    """

    def __init__(self, path: Path, layout: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
        """``layout``: tensor name -> (numpy dtype name, full shape ``[N, ...]``)."""
        self._path = path
        # equal tensors give equal bytes, in whatever order they are named: digests are taken of the file
        self._layout = dict(sorted(layout.items()))
        self._rows: RowFile | None = None

    def __enter__(self) -> SampleWriter:
        head, size = self._head()
        self._context = atomic_path(self._path, len(head) + size)
        temp = self._context.__enter__()
        try:
            self._create(temp, head, size)
            self._rows = RowFile(temp)
        except BaseException as error:
            self._context.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self._rows is not None:
            self._rows.close()
        self._context.__exit__(kind, error, trace)

    @property
    def rows(self) -> RowFile:
        """The file as it grows, under a temporary name: other processes may open it, too."""
        assert self._rows is not None, "not entered"
        return self._rows

    def write(self, start: int, tensors: Mapping[str, Array]) -> None:
        """Write rows ``start ..`` of every named tensor."""
        self.rows.write(start, tensors)

    def _head(self) -> tuple[bytes, int]:
        """Return what stands before the tensors, and the bytes of these."""
        header: dict[str, Any] = {"__metadata__": {"schema": _SCHEMA}}
        offset = 0
        for name, (dtype, shape) in self._layout.items():
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            header[name] = {
                "dtype": _DTYPES[dtype],
                "shape": list(shape),
                "data_offsets": [offset, offset + size],
            }
            offset += size
        head = json.dumps(header, separators=(",", ":")).encode()
        # tensors begin at a multiple of 8 bytes, so that mapped numbers are aligned
        head += b" " * (-len(head) % 8)
        return len(head).to_bytes(8, "little") + head, offset

    def _create(self, temp: Path, head: bytes, size: int) -> None:
        with temp.open("wb") as file:
            file.write(head)
            # written, not seeked over: a full disk must show here and not as a bus error in the mapping
            remaining = size
            while remaining > 0:
                remaining -= file.write(bytes(min(remaining, 1 << 20)))
