"""What does a float denoiser answer, and what does each module inside it return on the way?"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gacq_deploy.artifact.call import SAMPLE, TIMESTEP
from gacq_deploy.models.base import Denoiser
from gacq_deploy.models.placement import to_host
from gacq_deploy.spec import Array

_KEPT_VALUES = 1 << 14
"""Values of a module's tensor that are kept, evenly spread over it: all tensors of a large model do not fit."""

_LAST_BIT = 2.0**-23
"""Of a float32, relative to its value."""


class Returned(NamedTuple):
    """What a module returned: the shape, and some of the values (:func:`spread_values`)."""

    shape: tuple[int, ...]
    values: Array


def answer_rows(denoiser: Denoiser, feeds: Mapping[str, Array]) -> Array:
    """Return the denoiser's outputs ``[N, ...]`` float32, computed row by row.

    Args:
        denoiser: a float model.
        feeds: sample, timestep and conditioning by name, each ``[N, ...]``.
    """
    rows = range(len(feeds[SAMPLE]))
    return to_host(
        torch.cat([_answer(denoiser, {k: v[row : row + 1] for k, v in feeds.items()}) for row in rows])
    )


@contextmanager
def other_rounding(module: nn.Module) -> Iterator[None]:
    """Inside the context round each layer's result otherwise in its last bit, each time the same way.

    How far answers then move tells what another order of sums may change: next to nothing, as a rule; but a
    normalization of what is constant makes numbers out of rounding.
    """
    generator = torch.Generator().manual_seed(0)

    def hook(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return None
        # in place: a large model's tensor is there twice already
        factors = torch.rand(output.shape, generator=generator).mul_(2).sub_(1).mul_(_LAST_BIT).add_(1)
        return output * factors.to(output.device)

    with ExitStack() as stack:
        for layer in module.modules():
            if next(layer.children(), None) is None:
                stack.callback(layer.register_forward_hook(hook).remove)
        yield


def module_returns(
    denoiser: Denoiser, feeds: Mapping[str, Array], modules: Collection[str]
) -> dict[str, Returned]:
    """Return what these modules return on one row; of a module that is called again, its last call.

    Args:
        denoiser: a float model.
        feeds: as for :func:`answer_rows`, of one row.
        modules: dotted names; those that return anything but one tensor, or are never called, are left out.
    """
    found: dict[str, Returned] = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor):
                # copied: what comes next may write into it
                found[name] = Returned(tuple(output.shape), spread_values(to_host(output)).copy())

        return hook

    with ExitStack() as stack:
        for name in modules:
            stack.callback(denoiser.module.get_submodule(name).register_forward_hook(keep(name)).remove)
        _answer(denoiser, feeds)
    return found


def spread_values(values: Array) -> Array:
    """Return at most some ten thousand values of an array, evenly spread over it, as ``[n]``."""
    flat = values.reshape(-1)
    return flat[:: -(-flat.size // _KEPT_VALUES) or 1]


def _answer(denoiser: Denoiser, feeds: Mapping[str, Array]) -> Tensor:
    tensors = {name: torch.tensor(value) for name, value in feeds.items()}
    sample, timestep = tensors.pop(SAMPLE), tensors.pop(TIMESTEP)
    with torch.no_grad():
        return denoiser(sample, timestep, tensors)
