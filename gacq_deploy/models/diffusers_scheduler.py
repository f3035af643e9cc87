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

from gacq_deploy.errors import ModelError, UsageError
from gacq_deploy.models.loading import FAILURES, first_line, named_class
from gacq_deploy.sampling.scheduler_names import EXAMPLES, unknown_scheduler
from gacq_deploy.sampling.timesteps import TIMESTEPS_MAX, Keys, ModelTimesteps, model_timesteps_from
from gacq_deploy.spec import Float32

_FLOW = "FlowMatch"
_PIPELINE_KEYS = ("mu", "pipeline_sigmas")
"""Keys of a model's scheduler configuration that say what its pipeline gives to ``set_timesteps``."""
_TRIED = 2
_STEP_ARGUMENTS = ("self", "model_output", "timestep", "sample")
"""What sampling gives to a scheduler's ``step``."""


@dataclass(frozen=True)
class DiffusersSampler:
    """A scheduler class of diffusers; satisfies ``sampling.loop.Sampler``.

    ``timesteps`` are rounded; a scheduler that calls the network twice at one timestep has it twice.
    """

    scheduler: Any
    steps: int
    timesteps: Keys
    model_timesteps: ModelTimesteps
    given: Mapping[str, Any] = field(default_factory=dict)
    """What ``set_timesteps`` takes besides the number of steps."""

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        steps: int,
        name: str,
        *,
        timestep_dtype: str = "int64",
        timestep_scale: float = 1.0,
    ) -> DiffusersSampler:
        """Make scheduler ``name`` from the model's configuration, as diffusers' ``from_config`` does.

        Args:
            config: plain dict, as in ``scheduler_config.json``, with ``mu`` where the steps shift with the size.
            steps: sampler steps.
            name: a scheduler class of diffusers.
            timestep_dtype: what the network takes; ``float32`` can be any timestep, ``int64`` whole ones alone.
            timestep_scale: what the network is fed is the timestep times this.

        Raises:
            UsageError: no such scheduler, one of another kind, or more steps than the model was trained with.
            ModelError: it cannot use this configuration, or the model does not take its timesteps.
        """
        kind = _find_scheduler(name)
        total = _trained_steps(config)
        if not 1 <= steps <= total:
            raise UsageError(
                f"{steps} sampler steps: the model was trained with {total}.", f"Choose 1 to {total}."
            )
        given = _given(kind, config, steps)
        scheduler = _configure(kind, config, steps)
        values = scheduler.timesteps.double().numpy()
        whole = timestep_dtype == "int64"
        if whole and not np.array_equal(values, np.round(values)):
            raise ModelError(
                f"{name} asks for fractional timesteps ({values[0]:.3f} first), the engine takes whole ones.",
                _whole_timesteps_hint(kind, config, steps),
            )
        # a flow starts at the last timestep's end: sigma 1 is timestep 1000 of 1000
        if not (values.min() >= 0 and (values.max() < total or (not whole and values.max() == total))):
            raise ModelError(
                f"{name} asks for timesteps {values.min():.0f} to {values.max():.0f}, the model was trained "
                f"on 0 to {total - 1}.",
                "Use ddim.",
            )
        needed = () if _is_flow(scheduler) else ("init_noise_sigma", "scale_model_input")
        lacking = [a for a in needed if not hasattr(scheduler, a)]
        if lacking:
            raise UsageError(f"{name} has no {lacking[0]}, which denoising needs.", EXAMPLES)
        fed = model_timesteps_from(values, timestep_dtype, timestep_scale)
        made = cls(scheduler, steps, np.rint(values).astype(np.int64), fed, given)
        made._try_out()
        return made

    def _try_out(self) -> None:
        """Take the first steps with a state of nothing: what a scheduler needs beyond that shows here, before work.

        Raises:
            UsageError: it cannot step so.
        """
        run = self.begin((0,))
        state = run.start(np.zeros((1, 4, 2, 2), np.float32))
        for index in range(min(_TRIED, len(self.timesteps))):
            output = run.model_input(state, index)
            state = run.step(output, index, state)

    def begin(self, seeds: Sequence[int]) -> DiffusersRun:
        """Start a batch with its own copy of the scheduler: ``step`` changes it."""
        scheduler = copy.deepcopy(self.scheduler)
        scheduler.set_timesteps(self.steps, **self.given)
        generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        return DiffusersRun(scheduler, generators)


@dataclass(frozen=True)
class DiffusersRun:
    """One batch of trajectories; satisfies ``sampling.loop.SamplerRun``."""

    scheduler: Any
    generators: list[torch.Generator] = field(repr=False)

    def start(self, noise: Float32) -> Float32:
        """Return unit noise times the scheduler's initial sigma."""
        return np.asarray(noise * np.float32(float(getattr(self.scheduler, "init_noise_sigma", 1.0))))

    def model_input(self, sample: Float32, index: int) -> Float32:
        """Return the state scaled for the network."""
        if not hasattr(self.scheduler, "scale_model_input"):
            return sample
        scaled = self.scheduler.scale_model_input(torch.from_numpy(sample), self.scheduler.timesteps[index])
        return np.asarray(scaled.numpy(), dtype=np.float32)

    def step(self, output: Float32, index: int, sample: Float32) -> Float32:
        """Return the next state; random schedulers draw row i from its own generator.

        Raises:
            UsageError: the scheduler cannot take it.
        """
        extra = {}
        if "generator" in inspect.signature(self.scheduler.step).parameters:
            extra["generator"] = self.generators
        try:
            stepped = self.scheduler.step(
                torch.from_numpy(np.ascontiguousarray(output)),
                self.scheduler.timesteps[index],
                torch.from_numpy(np.ascontiguousarray(sample)),
                return_dict=False,
                **extra,
            )[0]
        except FAILURES as error:
            raise UsageError(
                f"{type(self.scheduler).__name__} cannot take step {index}: {type(error).__name__}: "
                f"{first_line(error)}.",
                f"Choose another. {EXAMPLES}",
            ) from error
        return np.asarray(stepped.numpy(), dtype=np.float32)


def _find_scheduler(name: str) -> Any:
    """Return the scheduler class ``name``, if one step of it takes output, timestep and state."""
    kind = named_class(name)
    if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
        raise unknown_scheduler(name, [one for one in dir(diffusers) if one.endswith("Scheduler")])
    lacking = [m for m in ("from_config", "set_timesteps", "step") if not hasattr(kind, m)]
    if lacking:
        raise UsageError(f"'{name}' of diffusers has no {lacking[0]}: it cannot denoise.", EXAMPLES)
    parameters = inspect.signature(kind.step).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    more = [argument for argument in needed if argument not in _STEP_ARGUMENTS]
    if more:
        raise UsageError(
            f"A step of {name} also needs {', '.join(more)}, which denoising does not give.", EXAMPLES
        )
    return kind


def _trained_steps(config: Mapping[str, Any]) -> int:
    total = config.get("num_train_timesteps", 1000)
    if not isinstance(total, int) or isinstance(total, bool) or not 1 <= total <= TIMESTEPS_MAX:
        raise ModelError(
            f"Scheduler configuration: num_train_timesteps = {total!r} is not a whole number from 1 "
            f"to {TIMESTEPS_MAX}.",
            "Mend scheduler_config.json of the model, then calibrate again.",
        )
    return total


def _configure(kind: Any, config: Mapping[str, Any], steps: int) -> Any:
    try:
        scheduler = kind.from_config({k: v for k, v in config.items() if k not in _PIPELINE_KEYS})
        scheduler.set_timesteps(steps, **_given(kind, config, steps))
    except FAILURES as error:
        raise ModelError(
            f"{kind.__name__} cannot use this model's scheduler configuration: {first_line(error)}.",
            "Use ddim.",
        ) from error
    return scheduler


def _given(kind: Any, config: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """Return what a pipeline would give to ``set_timesteps`` besides the number of steps."""
    taken = inspect.signature(kind.set_timesteps).parameters
    given: dict[str, Any] = {}
    if config.get("use_dynamic_shifting") and config.get("mu") is not None and "mu" in taken:
        given["mu"] = float(config["mu"])
    sigmas = config.get("pipeline_sigmas")
    if (config.get("mu") is not None if sigmas is None else sigmas) and "sigmas" in taken:
        given["sigmas"] = np.linspace(1.0, 1 / steps, steps)
    # a flow's noise levels lie between 0 and 1; by sigmas other schedulers mean another scale
    if not kind.__name__.startswith(_FLOW):
        given.pop("sigmas", None)
    return given


def _is_flow(scheduler: Any) -> bool:
    """Return whether it starts from unit noise and feeds states as they are, and so does not say it."""
    return type(scheduler).__name__.startswith(_FLOW)


def _whole_timesteps_hint(kind: Any, config: Mapping[str, Any], steps: int) -> str:
    """Advise the spacing that makes whole timesteps only where it does."""
    values = _configure(kind, {**config, "timestep_spacing": "leading"}, steps).timesteps.double().numpy()
    if np.array_equal(values, np.round(values)):
        return "Set timestep_spacing to 'leading' in the scheduler's configuration, or use ddim."
    return "Use ddim."
