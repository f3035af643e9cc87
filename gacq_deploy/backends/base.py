"""What is an engine? Named arrays in, named arrays out, opened and closed like a file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

import numpy as np

from gacq_deploy.errors import EngineError
from gacq_deploy.spec import Array

Feeds = Mapping[str, Array]


@dataclass(frozen=True)
class TensorInfo:
    """Name, numpy dtype name and shape of an input or output; None marks a dynamic dimension.

    Dynamic dimensions behind the first, the batch, are multiples of ``size_multiple``.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    size_multiple: int = 1


@runtime_checkable
class Engine(Protocol):
    """Something that runs one denoiser step. Every backend and every test double has this shape."""

    @property
    def label(self) -> str:
        """What really runs, for reports: ``onnxruntime-1.32.0/CPUExecutionProvider``."""

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """Declared inputs."""

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """Declared outputs."""

    @property
    def max_rows(self) -> int | None:
        """Largest batch of one run; None: any."""

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Run once on host arrays.

        Raises:
            EngineError: a name, dtype or shape does not fit, an input is not finite, or the engine is closed.
        """

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class HostEngine(ABC):
    """What engines on host arrays have in common: declarations, checked feeds, a closed state.

    A backend writes ``_run`` (feeds are checked, the engine is open) and ``_close``.
    """

    def __init__(self, label: str, inputs: tuple[TensorInfo, ...], outputs: tuple[TensorInfo, ...]) -> None:
        self._label = label
        self._inputs = inputs
        self._outputs = outputs
        self._open = True

    @property
    def label(self) -> str:
        """What really runs."""
        return self._label

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """Declared inputs."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """Declared outputs."""
        return self._outputs

    @property
    def max_rows(self) -> int | None:
        """Largest batch of one run; None: any."""
        return None

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Run once.

        Raises:
            EngineError: the feeds do not fit, the run failed, or the engine is closed.
            ResourceError: out of memory.
        """
        if not self._open:
            raise EngineError(f"{self._label}: the engine is closed.", "Run it inside its `with` block.")
        check_feeds(self._inputs, feeds, engine=self._label)
        return self._run(feeds)

    @abstractmethod
    def _run(self, feeds: Feeds) -> dict[str, Array]: ...

    @abstractmethod
    def _close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._open:
            self._open = False
            self._close()


def check_feeds(infos: tuple[TensorInfo, ...], feeds: Feeds, *, engine: str) -> None:
    """Check names, dtypes, shapes, one common batch size and finiteness: INT8 graphs hide NaN.

    Raises:
        EngineError: naming the input, what it is and what it should be.
    """
    wanted = {i.name for i in infos}
    if wanted != set(feeds):
        raise EngineError(
            f"{engine}: inputs {sorted(feeds)} were given, the engine takes {sorted(wanted)}.",
            "Pass exactly the engine's inputs by name.",
        )
    for info in infos:
        _check_feed(info, feeds[info.name], engine)
    batches = {i.name: feeds[i.name].shape[0] for i in infos if i.shape and i.shape[0] is None}
    if len(set(batches.values())) > 1:
        raise EngineError(
            f"{engine}: inputs disagree on the batch size: {batches}.", "Give every input the same rows."
        )


def _check_feed(info: TensorInfo, value: Array, engine: str) -> None:
    if value.dtype.name != info.dtype:
        raise EngineError(
            f"{engine}: input '{info.name}' is {value.dtype.name}, expected {info.dtype}.",
            f"Convert it: array.astype('{info.dtype}').",
        )
    fits = value.ndim == len(info.shape) and all(
        want is None or want == got for want, got in zip(info.shape, value.shape, strict=True)
    )
    if not fits or 0 in value.shape:
        raise EngineError(
            f"{engine}: input '{info.name}' has shape {list(value.shape)}, "
            f"expected {_declared(info.shape)}, batch >= 1.",
            "Give it the shape the model was exported with; for any height and width set export.dynamic_resolution "
            "in the recipe and export again, if the model allows it.",
        )
    sizes = [got for want, got in zip(info.shape[1:], value.shape[1:], strict=True) if want is None]
    if any(size % info.size_multiple for size in sizes):
        raise EngineError(
            f"{engine}: input '{info.name}' has shape {list(value.shape)}; the model takes multiples of "
            f"{info.size_multiple} for {sizes}.",
            "Pad it, or choose another size.",
        )
    if np.issubdtype(value.dtype, np.floating) and not bool(np.isfinite(value).all()):
        row = int(np.argwhere(~np.isfinite(value))[0][0])
        raise EngineError(
            f"{engine}: input '{info.name}' holds NaN or Inf, first in batch row {row}.",
            "An INT8 graph would turn it into plausible numbers; find its source.",
        )


def _declared(shape: tuple[int | None, ...]) -> list[int | str]:
    """Return a declared shape for a message, its dynamic dimensions by a name."""
    dims: list[int | str] = []
    for axis, size in enumerate(shape):
        name = "batch" if axis == 0 else "any"
        dims.append(name if size is None else size)
    return dims
