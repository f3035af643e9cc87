"""How do rows reach a file one by one, and back without reading the others?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from gacq_deploy.spec import Array
from gacq_deploy.storage.arrays import array_header, array_places
from gacq_deploy.storage.files import atomic_path

_SCHEMA = "gacq-deploy/samples/1"


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
        with path.open("rb") as file:
            places = array_places(file)
        self.tensors: dict[str, Array] = {
            name: np.memmap(path, place.dtype, mode, place.offset, place.shape)
            for name, place in places.items()
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
        head, size = array_header(self._layout, schema=_SCHEMA)
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

    def _create(self, temp: Path, head: bytes, size: int) -> None:
        with temp.open("wb") as file:
            file.write(head)
            # written, not seeked over: a full disk must show here and not as a bus error in the mapping
            remaining = size
            while remaining > 0:
                remaining -= file.write(bytes(min(remaining, 1 << 20)))
