"""How does a plain Python function become an engine? For references in torch, and for tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from gacq_deploy.backends.base import Feeds, HostEngine, TensorInfo
from gacq_deploy.errors import EngineError
from gacq_deploy.spec import Array


class FunctionEngine(HostEngine):
    """An engine around ``function(feeds) -> {output name: array}``, held to what it declares."""

    def __init__(
        self,
        function: Callable[[Feeds], Mapping[str, Array]],
        inputs: tuple[TensorInfo, ...],
        outputs: tuple[TensorInfo, ...],
        label: str = "function",
    ) -> None:
        super().__init__(label, inputs, outputs)
        self._function = function

    def _run(self, feeds: Feeds) -> dict[str, Array]:
        results = dict(self._function(feeds))
        if set(results) != {o.name for o in self._outputs}:
            wanted = sorted(o.name for o in self._outputs)
            raise EngineError(
                f"{self._label}: the function returned {sorted(results)}, declared are {wanted}.",
                "Return exactly the declared outputs by name.",
            )
        for info in self._outputs:
            value = results[info.name]
            fits = len(value.shape) == len(info.shape) and all(
                want is None or want == got for want, got in zip(info.shape, value.shape, strict=True)
            )
            if not fits or value.dtype.name != info.dtype:
                raise EngineError(
                    f"{self._label}: output '{info.name}' is {value.dtype.name} {list(value.shape)}, "
                    f"declared is {info.dtype} {list(info.shape)}.",
                    "Correct the declaration or the function.",
                )
        return results

    def _close(self) -> None:
        """Nothing is held but the function."""
