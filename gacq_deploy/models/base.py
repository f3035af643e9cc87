"""How is any denoiser called? One call shape: sample, timestep, conditioning by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from gacq_deploy.artifact.call import SAMPLE, TIMESTEP, ArgumentRecord, CallRecord, place
from gacq_deploy.artifact.records import ModelRecord
from gacq_deploy.models.placement import home_of

Conditioning = Mapping[str, Tensor]
Config = Mapping[str, Any]


@dataclass(frozen=True)
class Family:
    """What is known of a class of denoisers beforehand; of most, nothing but its name.

    ``describe`` reads the call off a configuration and the shape of a state ``(C, H, W)``; without it, a pipeline's own
    call is recorded. It raises ModelError for a configuration that is not supported.
    """

    name: str
    describe: Callable[[Config, tuple[int, ...]], CallRecord] | None = None
    size_multiple: Callable[[Config], int] | None = None
    """Reads the configuration and returns what height and width must be multiples of; None where the weights hold
    positional embeddings for one size, or nothing is known."""


def run_call(
    module: nn.Module, call: CallRecord, sample: Tensor, timestep: Tensor, conditioning: Conditioning
) -> Tensor:
    """Call a denoiser as its record says.

    Args:
        module: the denoiser.
        call: how it wants to be called.
        sample: ``[N, *call.state.shape]``.
        timestep: ``[N]`` int64 or float32.
        conditioning: input name -> ``[N, ...]``.

    Returns:
        The prediction ``[N, *call.state.shape]``.
    """
    arguments: dict[str, Any] = dict(call.constants)
    place(arguments, call.state.path, sample)
    place(arguments, call.timestep.path, timestep)
    for argument in call.arguments:
        value = conditioning[argument.name]
        place(arguments, argument.path, value[0] if argument.shared else value)
    prediction = first_tensor(module(**arguments))
    channels = sample.shape[1]
    # models with a learned variance give [noise, variance]; deterministic samplers have no use for the second half
    return prediction if prediction.shape[1] == channels else prediction[:, :channels]


def first_tensor(output: Any) -> Tensor:
    """Return the first tensor of what a denoiser returned: itself, a tuple's, or an output class's."""
    while not isinstance(output, Tensor):
        output = next(iter(output.values())) if isinstance(output, Mapping) else output[0]
    return output


class CallModule(nn.Module):
    """A denoiser whose inputs are positional tensors in the order sample, timestep, conditioning: for exporters."""

    def __init__(self, denoiser: nn.Module, call: CallRecord) -> None:
        super().__init__()
        self.denoiser = denoiser
        self._call = call

    def forward(self, sample: Tensor, timestep: Tensor, *conditioning: Tensor) -> Tensor:
        """Return the prediction ``[N, ...]``."""
        names = (a.name for a in self._call.arguments)
        return run_call(
            self.denoiser, self._call, sample, timestep, dict(zip(names, conditioning, strict=True))
        )


@dataclass(frozen=True)
class Denoiser:
    """A loaded float denoiser in evaluation mode, parameters frozen, float32."""

    module: nn.Module
    record: ModelRecord
    family: Family

    @cached_property
    def call(self) -> CallRecord:
        """How the module is called: as recorded from its pipeline, or as its configuration says.

        Raises:
            ModelError: nothing was recorded, and the configuration does not tell.
        """
        if self.record.call is not None:
            return self.record.call
        assert self.family.describe is not None, f"{self.family.name}: no call was recorded"
        config: Any = self.module.config
        call = self.family.describe(config, self.record.sample_shape)
        return with_classes(call, self.record.conditioning)

    @property
    def device(self) -> torch.device:
        """Where the module lies, and so where everything is computed that is computed with it."""
        return home_of(self.module)

    def __call__(self, sample: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        """Run one step where the module lies, whatever device the inputs come from.

        ``sample`` [N, ...] float32, ``timestep`` [N] int64 or float32 -> [N, ...] float32.
        """
        device = self.device
        given = {name: value.to(device) for name, value in conditioning.items()}
        return run_call(self.module, self.call, sample.to(device), timestep.to(device), given)

    def call_module(self) -> nn.Module:
        """Return the network with positional inputs; the real module is its attribute ``denoiser``."""
        return CallModule(self.module, self.call).eval()

    def example_inputs(self, batch: int, seed: int = 0) -> dict[str, Tensor]:
        """Return seeded inputs by name, in call order."""
        generator = torch.Generator().manual_seed(seed)
        inputs = {SAMPLE: torch.randn((batch, *self.record.sample_shape), generator=generator)}
        steps = torch.randint(0, self.num_train_timesteps, (batch,), generator=generator)
        timestep = self.call.timestep
        inputs[TIMESTEP] = steps if timestep.dtype == "int64" else steps.float() * timestep.scale
        for argument in self.call.arguments:
            inputs[argument.name] = _example(argument, batch, generator)
        return inputs

    @property
    def num_train_timesteps(self) -> int:
        """Number of timesteps the scheduler was trained with."""
        return int(self.record.scheduler.get("num_train_timesteps", 1000))


def _example(argument: ArgumentRecord, batch: int, generator: torch.Generator) -> Tensor:
    shape = (batch, *argument.shape)
    if argument.dtype == "bool":
        return torch.ones(shape, dtype=torch.bool)
    if argument.dtype == "int64":
        value = torch.randint(0, argument.num_classes or argument.upper or 1, shape, generator=generator)
    else:
        value = torch.randn(shape, generator=generator)
    return value[:1].expand(shape).clone() if argument.shared else value


def with_classes(call: CallRecord, conditioning: Mapping[str, Mapping[str, Any]]) -> CallRecord:
    """Return the call with as many classes as the conditioning has: of a table with a null class, the real ones."""
    arguments = tuple(
        a.model_copy(update={"num_classes": conditioning[a.name].get("num_classes", a.num_classes)})
        for a in call.arguments
    )
    return call.model_copy(update={"arguments": arguments})
