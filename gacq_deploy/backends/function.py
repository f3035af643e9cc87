"""How does a plain Python function become an engine? For references in torch, and for tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from gacq_deploy.backends.base import Array, Feeds, TensorInfo, check_feeds
from gacq_deploy.errors import EngineError


class FunctionEngine:
    """An engine around ``function(feeds) -> {output name: array}``, held to what it declares."""

    def __init__(
        self,
        function: Callable[[Feeds], Mapping[str, Array]],
        inputs: tuple[TensorInfo, ...],
        outputs: tuple[TensorInfo, ...],
        label: str = "function",
    ) -> None:
        self._function: Callable[[Feeds], Mapping[str, Array]] | None = function
        self._inputs = tuple(inputs)
        self._outputs = tuple(outputs)
        self._label = label

    @property
    def label(self) -> str:
        """What was given as the label."""
        return self._label

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """Declared inputs."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """Declared outputs."""
        return self._outputs

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Call the function once and check what it returned.

        Raises:
            EngineError: the feeds or the function's result do not fit what is declared, or closed.
        """
        function = self._function
        if function is None:
            raise EngineError(f"{self._label}: the engine is closed.", "Run it inside its `with` block.")
        check_feeds(self._inputs, feeds, engine=self._label)
        results = dict(function(feeds))
        if set(results) != {o.name for o in self._outputs}:
            wanted = sorted(o.name for o in self._outputs)
            raise EngineError(
                f"{self._label}: the function returned {sorted(results)}, declared are {wanted}."
            )
        for info in self._outputs:
            value = results[info.name]
            fits = len(value.shape) == len(info.shape) and all(
                want is None or want == got for want, got in zip(info.shape, value.shape, strict=True)
            )
            if not fits or value.dtype.name != info.dtype:
                raise EngineError(
                    f"{self._label}: output '{info.name}' is {value.dtype.name} {list(value.shape)}, "
                    f"declared is {info.dtype} {list(info.shape)}."
                )
        return results

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._function = None
