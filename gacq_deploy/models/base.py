"""How is any denoiser called? One call shape: sample, timestep, conditioning by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gacq_deploy.artifact import ModelRecord

Conditioning = Mapping[str, Tensor]
Call = Callable[[nn.Module, Tensor, Tensor, Conditioning], Tensor]


@dataclass(frozen=True)
class Family:
    """What a family of denoisers needs to say about itself.

    ``call`` adapts the module's forward to ``(sample [N, C, H, W], timestep [N], conditioning) -> [N, C, H, W]``;
    ``conditioning`` reads the configuration and returns input name -> {dtype, shape (without batch), num_classes}.
    """

    name: str
    call: Call
    conditioning: Callable[[Mapping[str, Any]], dict[str, dict[str, Any]]]
    block_types: tuple[type[nn.Module], ...]
    """Modules that are reconstructed as one block."""
    size_multiple: Callable[[Mapping[str, Any]], int] | None = None
    """Reads the configuration and returns what height and width must be multiples of; None where the weights hold
    positional embeddings for one size."""


class CallModule(nn.Module):
    """A denoiser whose inputs are positional tensors in the order sample, timestep, conditioning: for exporters."""

    def __init__(self, denoiser: nn.Module, call: Call, names: tuple[str, ...]) -> None:
        super().__init__()
        self.denoiser = denoiser
        self._call = call
        self._names = names

    def forward(self, sample: Tensor, timestep: Tensor, *conditioning: Tensor) -> Tensor:
        """Return the model output ``[N, C, H, W]``."""
        return self._call(self.denoiser, sample, timestep, dict(zip(self._names, conditioning, strict=True)))


@dataclass(frozen=True)
class Denoiser:
    """A loaded float denoiser in evaluation mode, parameters frozen, float32."""

    module: nn.Module
    record: ModelRecord
    family: Family

    def __call__(self, sample: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        """Run one step: ``sample`` [N, C, H, W] float32, ``timestep`` [N] int64 -> [N, C, H, W] float32."""
        return self.family.call(self.module, sample, timestep, conditioning)

    def call_module(self) -> nn.Module:
        """Return the network with positional inputs; the real module is its attribute ``denoiser``."""
        return CallModule(self.module, self.family.call, tuple(self.record.conditioning)).eval()

    def example_inputs(self, batch: int, seed: int = 0) -> dict[str, Tensor]:
        """Return seeded inputs by name, in call order."""
        generator = torch.Generator().manual_seed(seed)
        inputs = {
            "sample": torch.randn((batch, *self.record.sample_shape), generator=generator),
            "timestep": torch.randint(0, self.num_train_timesteps, (batch,), generator=generator),
        }
        for name, info in self.record.conditioning.items():
            shape = (batch, *info["shape"])
            if info["dtype"] == "int64":
                inputs[name] = torch.randint(0, int(info["num_classes"]), shape, generator=generator)
            else:
                inputs[name] = torch.randn(shape, generator=generator)
        return inputs

    @property
    def num_train_timesteps(self) -> int:
        """Number of timesteps the scheduler was trained with."""
        return int(self.record.scheduler.get("num_train_timesteps", 1000))
