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
_EXAMPLES = "For instance: ddim, EulerDiscreteScheduler, PNDMScheduler."
_STEP_ARGUMENTS = ("self", "model_output", "timestep", "sample")


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
            UsageError: no such scheduler, one of another kind, or more steps than the model was trained with.
            ModelError: it cannot use this configuration, or its timesteps are not the model's whole numbers.
        """
        kind = _find_scheduler(name)
        total = _trained_steps(config)
        if not 1 <= steps <= total:
            raise UsageError(
                f"{steps} sampler steps: the model was trained with {total}.", f"Choose 1 to {total}."
            )
        scheduler = _configure(kind, config, steps)
        values = scheduler.timesteps.double().numpy()
        if not np.array_equal(values, np.round(values)):
            raise ModelError(
                f"{name} asks for fractional timesteps ({values[0]:.3f} first), the engine takes whole ones.",
                _whole_timesteps_hint(kind, config, steps),
            )
        if not 0 <= values.min() <= values.max() < total:
            raise ModelError(
                f"{name} asks for timesteps {values.min():.0f} to {values.max():.0f}, the model was trained "
                f"on 0 to {total - 1}.",
                "Use ddim.",
            )
        lacking = [a for a in ("init_noise_sigma", "scale_model_input") if not hasattr(scheduler, a)]
        if lacking:
            raise UsageError(f"{name} has no {lacking[0]}, which denoising needs.", _EXAMPLES)
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


def _find_scheduler(name: str) -> Any:
    """Return the scheduler class ``name``, if one step of it takes output, timestep and state."""
    kind = getattr(diffusers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
        raise UsageError(f"diffusers has no scheduler '{name}'.", _EXAMPLES)
    lacking = [m for m in ("from_config", "set_timesteps", "step") if not hasattr(kind, m)]
    if lacking:
        raise UsageError(f"'{name}' of diffusers has no {lacking[0]}: it cannot denoise.", _EXAMPLES)
    parameters = inspect.signature(kind.step).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    more = [argument for argument in needed if argument not in _STEP_ARGUMENTS]
    if more:
        raise UsageError(
            f"A step of {name} also needs {', '.join(more)}, which denoising does not give.", _EXAMPLES
        )
    return kind


def _trained_steps(config: Mapping[str, Any]) -> int:
    total = config.get("num_train_timesteps", 1000)
    if not isinstance(total, int) or total < 1:
        raise ModelError(
            f"Scheduler configuration: num_train_timesteps = {total!r} is not a whole number from 1.",
            "Mend scheduler_config.json of the model, then calibrate again.",
        )
    return total


def _configure(kind: Any, config: Mapping[str, Any], steps: int) -> Any:
    try:
        scheduler = kind.from_config(dict(config))
        scheduler.set_timesteps(steps)
    except (ValueError, NotImplementedError, TypeError, ImportError, LookupError) as error:
        raise ModelError(
            f"{kind.__name__} cannot use this model's scheduler configuration: {error}.", "Use ddim."
        ) from error
    return scheduler


def _whole_timesteps_hint(kind: Any, config: Mapping[str, Any], steps: int) -> str:
    """Advise the spacing that makes whole timesteps only where it does."""
    values = _configure(kind, {**config, "timestep_spacing": "leading"}, steps).timesteps.double().numpy()
    if np.array_equal(values, np.round(values)):
        return "Set timestep_spacing to 'leading' in the scheduler's configuration, or use ddim."
    return "Use ddim."
