"""Which linear layers alone read what a normalization layer makes? Observed on one small forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from gacq_deploy.models.base import Denoiser

_BATCH = 3
_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)


def norms_of_linears(denoiser: Denoiser) -> dict[str, frozenset[str]]:
    """Return norm -> the linear layers that read its very output, where nobody else does.

    Only norms whose affine part scales the last axis of their output and that run once in a step.
    """
    inputs = denoiser.example_inputs(_BATCH)
    conditioning = {k: v for k, v in inputs.items() if k not in ("sample", "timestep")}
    watch = _Watch()
    with ExitStack() as stack:
        for name, module in denoiser.module.named_modules():
            if isinstance(module, _NORMS):
                stack.callback(module.register_forward_hook(watch.norm(name)).remove)
            elif isinstance(module, nn.Linear):
                stack.callback(module.register_forward_pre_hook(watch.linear(name)).remove)
        stack.enter_context(torch.no_grad())
        stack.enter_context(watch.reads)
        output = denoiser(inputs["sample"], inputs["timestep"], conditioning)
    return watch.found(output)


class _Watch:
    """Notes what every norm makes and every linear layer reads, and holds it: identities stay unique."""

    def __init__(self) -> None:
        self.reads = _Reads()
        self._norms: list[tuple[str, nn.Module, Tensor]] = []
        self._linears: list[tuple[str, Tensor]] = []

    def norm(self, name: str) -> Any:
        def hook(module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> None:
            self._norms.append((name, module, output))

        return hook

    def linear(self, name: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            self._linears.append((name, args[0]))

        return hook

    def found(self, result: Tensor) -> dict[str, frozenset[str]]:
        calls = [name for name, _, _ in self._norms]
        made = [id(output) for _, _, output in self._norms]
        found = {}
        for name, norm, output in self._norms:
            readers = [linear for linear, x in self._linears if x is output]
            if (
                readers
                and output is not result
                and calls.count(name) == 1
                and made.count(id(output)) == 1
                and _scales_last_axis(norm, output)
                and self.reads.count(output) == len(readers)
            ):
                found[name] = frozenset(readers)
        return found


class _Reads(TorchFunctionMode):
    """Counts the products that read a tensor as their data; any other function that gets it counts for many."""

    def __init__(self) -> None:
        super().__init__()
        self._reads: list[tuple[Tensor, int]] = []

    def count(self, tensor: Tensor) -> int:
        return sum(number for read, number in self._reads if read is tensor)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        product = func is functional.linear
        if product or any(True for _ in _tensors(result)):  # a question about its shape is no reader
            for number, tensor in enumerate(_tensors((args, kwargs))):
                self._reads.append((tensor, 1 if product and number == 0 else 1 << 20))
        return result


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))


def _scales_last_axis(norm: nn.Module, output: Tensor) -> bool:
    weight = dict(norm.named_parameters(recurse=False)).get("weight")
    on_last = not isinstance(norm, nn.GroupNorm) or output.ndim == 2
    return on_last and weight is not None and tuple(weight.shape) == tuple(output.shape[-1:])
