"""How does a tensor get to where the model lies, and how do its numbers come back?"""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gacq_deploy.models.devices import HOST
from gacq_deploy.models.half_storage import HalfStored


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


def to_tensor(rows: NDArray[Any], device: torch.device = HOST) -> Tensor:
    """Return a contiguous copy in torch's own memory, on the device.

    On the CPU vectorized sums depend on the alignment of their data in the last bits; numpy's varies from run to run.
    """
    value = torch.from_numpy(np.ascontiguousarray(rows))
    return value.clone() if device.type == "cpu" else value.to(device)


def to_host(value: Tensor) -> NDArray[Any]:
    """Return a tensor's numbers; of one on the CPU not a copy."""
    array: NDArray[Any] = value.detach().cpu().numpy()
    return array
