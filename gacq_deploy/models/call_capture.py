"""What does a pipeline really pass to its denoiser? Every call is taken apart while it runs."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gacq_deploy.artifact.call import Place
from gacq_deploy.models.base import first_tensor
from gacq_deploy.models.placement import home_of
from gacq_deploy.models.pytree import mapped

Replacement = Callable[[dict[str, Any]], Any]


@dataclass(frozen=True)
class CapturedCall:
    """One call: tensors and plain values by place, floats in the denoiser's own dtype; ``output`` is the prediction."""

    leaves: Mapping[Place, Any]
    output: Tensor

    @property
    def tensors(self) -> dict[Place, Tensor]:
        """The tensors among the values."""
        return {path: value for path, value in self.leaves.items() if isinstance(value, Tensor)}


@dataclass
class CallCapture:
    """Stands before a denoiser's ``forward`` and keeps what passes.

    ``replacement`` may compute the output in the denoiser's place, from the arguments by name; by default the
    denoiser runs.
    ``keep`` gets every call; by default all are kept in ``calls``.
    """

    module: nn.Module
    replacement: Replacement | None = None
    keep: Callable[[CapturedCall], None] | None = None
    calls: list[CapturedCall] = field(default_factory=list)
    last_output: Any = None

    @contextmanager
    def capturing(self) -> Iterator[CallCapture]:
        """Capture until the context ends."""
        original = self.module.forward
        signature = inspect.signature(original)

        @functools.wraps(original)  # pipelines look at the signature
        def forward(*args: Any, **kwargs: Any) -> Any:
            given = dict(signature.bind(*args, **kwargs).arguments)
            # what **kwargs took is an argument as any other
            given |= given.pop(_rest(signature), {})
            arguments = mapped(given, self._to_own)
            output = (self.replacement or (lambda named: original(**named)))(arguments)
            self.last_output = output
            call = CapturedCall(dict(flatten(arguments)), first_tensor(output))
            (self.keep or self.calls.append)(call)
            return mapped(output, _as_given(given))

        self.module.__dict__["forward"] = forward
        try:
            yield self
        finally:
            del self.module.__dict__["forward"]

    def _to_own(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(
            home_of(self.module), _dtype(self.module) if value.is_floating_point() else value.dtype
        )


def flatten(tree: Any, path: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Yield every value of nested dicts, lists and tuples with its place; an empty container is a value."""
    inside: list[tuple[str | int, Any]] = []
    if isinstance(tree, Mapping):
        inside = [(str(k), v) for k, v in tree.items()]
    elif isinstance(tree, list | tuple):
        inside = list(enumerate(tree))
    if not inside:
        yield path, tree
    for key, value in inside:
        yield from flatten(value, (*path, key))


def blank(output: Any, before: int, rows: int) -> Any:
    """Return an output like the one captured, all zeros, for another number of rows."""

    def zeros(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        shape = (rows, *value.shape[1:]) if value.ndim and value.shape[0] == before else tuple(value.shape)
        return torch.zeros(shape, dtype=value.dtype, device=value.device)

    return mapped(output, zeros)


def _rest(signature: inspect.Signature) -> str:
    return next((p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD), "")


def _dtype(module: nn.Module) -> torch.dtype:
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)


def _as_given(given: Mapping[str, Any]) -> Callable[[Any], Any]:
    """Return a change to dtype and device of the caller's first float tensor: text encoders may compute in half."""
    tensors = (v for _, v in flatten(given) if isinstance(v, Tensor) and v.is_floating_point() and v.ndim > 1)
    like = next(tensors, None)
    dtype, device = (torch.float32, None) if like is None else (like.dtype, like.device)
    return lambda v: v.to(device, dtype) if isinstance(v, Tensor) and v.is_floating_point() else v
