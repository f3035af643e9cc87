"""How does any scheduler of diffusers drive the torch-free sampling loop?"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import SchedulerMixin
from numpy.typing import NDArray

from gacq_deploy.errors import ModelError, UsageError

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class DiffusersSampler:
    """A scheduler class of diffusers over integer timesteps; satisfies ``runtime.Sampler``."""

    scheduler: Any
    steps: int
    timesteps: NDArray[np.int64]

    @classmethod
    def from_config(cls, config: Mapping[str, Any], steps: int, name: str) -> DiffusersSampler:
        """Make scheduler ``name`` from the model's configuration, as diffusers' ``from_config`` does.

        Raises:
            UsageError: no such scheduler, or a number of steps it refuses.
            ModelError: it cannot use this configuration, or its timesteps are not whole numbers.
        """
        kind = getattr(diffusers, name, None)
        if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
            raise UsageError(
                f"diffusers has no scheduler '{name}'.",
                "For instance: ddim, EulerDiscreteScheduler, PNDMScheduler.",
            )
        if steps < 1:
            raise UsageError(f"{steps} sampler steps were asked for.", "Choose 1 or more.")
        try:
            scheduler = kind.from_config(dict(config))  # type: ignore[no-untyped-call]
            scheduler.set_timesteps(steps)
        except (ValueError, NotImplementedError, TypeError, ImportError) as error:
            raise ModelError(
                f"{name} cannot use this model's scheduler configuration: {error}.", "Use ddim."
            ) from error
        values = scheduler.timesteps.double().numpy()
        if not np.array_equal(values, np.round(values)):
            raise ModelError(
                f"{name} asks for fractional timesteps ({values[0]:.3f} first), the engine takes whole ones.",
                "Set timestep_spacing to 'leading' in the scheduler's configuration, or use ddim.",
            )
        return cls(scheduler, steps, values.astype(np.int64))

    def begin(self, seeds: Sequence[int]) -> DiffusersRun:
        """Start a batch with its own copy of the scheduler: ``step`` changes it."""
        scheduler = copy.deepcopy(self.scheduler)
        scheduler.set_timesteps(self.steps)
        generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        return DiffusersRun(scheduler, generators)


@dataclass(frozen=True)
class DiffusersRun:
    """One batch of trajectories; satisfies ``runtime.SamplerRun``."""

    scheduler: Any
    generators: list[torch.Generator] = field(repr=False)

    def start(self, noise: Floats) -> Floats:
        """Return unit noise times the scheduler's initial sigma."""
        return np.asarray(noise * np.float32(float(self.scheduler.init_noise_sigma)))

    def model_input(self, sample: Floats, index: int) -> Floats:
        """Return the state scaled for the network."""
        scaled = self.scheduler.scale_model_input(torch.from_numpy(sample), self.scheduler.timesteps[index])
        return np.asarray(scaled.numpy(), dtype=np.float32)

    def step(self, output: Floats, index: int, sample: Floats) -> Floats:
        """Return the next state; random schedulers draw row i from its own generator."""
        extra = {}
        if "generator" in inspect.signature(self.scheduler.step).parameters:
            extra["generator"] = self.generators
        stepped = self.scheduler.step(
            torch.from_numpy(np.ascontiguousarray(output)),
            self.scheduler.timesteps[index],
            torch.from_numpy(np.ascontiguousarray(sample)),
            return_dict=False,
            **extra,
        )[0]
        return np.asarray(stepped.numpy(), dtype=np.float32)
