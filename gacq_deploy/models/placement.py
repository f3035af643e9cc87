"""How does a tensor get to where the model lies, and how do its numbers come back?"""

from __future__ import annotations

import functools
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gacq_deploy.models.devices import HOST
from gacq_deploy.models.half_storage import HalfStored
from gacq_deploy.models.pytree import mapped


def home_of(module: nn.Module) -> torch.device:
    """Return where a module's first parameter or buffer lies, and with it all of them; the CPU if it has none."""
    first = next(chain(module.parameters(), module.buffers()), None)
    return HOST if first is None else first.device


def move(module: nn.Module, device: torch.device) -> nn.Module:
    """Move a module's parameters and buffers to a device, in place; weights in half precision stay so.

    A parameter that several layers share is moved once and stays shared.
    """
    if home_of(module) == device:
        return module
    known: dict[int, nn.Parameter] = {}
    for owner in module.modules():
        for name, value in owner.named_parameters(recurse=False, remove_duplicate=False):
            if id(value) not in known:
                known[id(value)] = nn.Parameter(_moved(value.detach(), device), value.requires_grad)
            owner._parameters[name] = known[id(value)]
        for name, buffer in owner.named_buffers(recurse=False):
            owner._buffers[name] = buffer.to(device)
    return module


def _moved(value: Tensor, device: torch.device) -> Tensor:
    return HalfStored(value.stored.to(device)) if isinstance(value, HalfStored) else value.to(device)


def visit(component: nn.Module, device: torch.device) -> None:
    """Let a module compute on the device from now on, and lie where it lies: it goes there for each of its calls.

    What it returns comes back to where its arguments came from. Text encoders are needed for a moment, and may weigh
    more than the denoiser.
    """
    original = component.forward

    @functools.wraps(original)  # pipelines look at the signature
    def forward(*args: Any, **kwargs: Any) -> Any:
        kept = [(owner, dict(owner._parameters), dict(owner._buffers)) for owner in component.modules()]
        came_from = home_of(component)
        try:
            move(component, device)
            given, named = mapped((args, kwargs), lambda v: v.to(device) if isinstance(v, Tensor) else v)
            result = original(*given, **named)
        finally:
            for owner, parameters, buffers in kept:
                owner._parameters.update(parameters)
                owner._buffers.update(buffers)
        return mapped(result, lambda v: v.to(came_from) if isinstance(v, Tensor) else v)

    component.__dict__["forward"] = forward


def to_tensor(rows: NDArray[Any], device: torch.device = HOST) -> Tensor:
    """Return a contiguous copy in torch's own memory, on the device.

    On the CPU vectorized sums depend on the alignment of their data in the last bits; numpy's varies from run to run.
    """
    value = torch.from_numpy(np.ascontiguousarray(rows))
    return value.clone() if device.type == "cpu" else value.to(device)


def to_host(value: Tensor) -> NDArray[Any]:
    """Return a tensor's numbers; of one on the CPU not a copy.

    One that a gradient is to be taken of is refused by torch, so that no graph is made by oversight.
    """
    array: NDArray[Any] = value.cpu().numpy()
    return array
