"""How does a rectified flow step from noise to image? In numpy, equal to ``FlowMatchEulerDiscreteScheduler``.

A state is ``(1 - sigma) * image + sigma * noise`` and the network predicts ``noise - image`` (Liu et al. 2022; Esser et
al. 2024, section 2), so an Euler step is ``state + (sigma_next - sigma) * prediction``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gacq_deploy.errors import ModelError, UsageError
from gacq_deploy.sampling.timesteps import (
    TIMESTEPS_MAX,
    Keys,
    ModelTimesteps,
    distinct_keys,
    model_timesteps_from,
)
from gacq_deploy.spec import Float32

FLOW_CLASS = "FlowMatchEulerDiscreteScheduler"
_HINT = "Choose another scheduler: `run --scheduler NAME` takes any scheduler class of diffusers."
_KARRAS_RHO = 7.0
_LACKING = {
    "invert_sigmas": "counts its timesteps from image to noise",
    "use_beta_sigmas": "takes quantiles of a beta distribution as its steps",
    "stochastic_sampling": "draws new noise in every step",
}
"""Settings that are refused, and what each would do."""


class FlowConfig(BaseModel):
    """What the sampler reads from a diffusers scheduler configuration; defaults are diffusers'.

    Two keys are no part of diffusers' own configuration: they say what a pipeline gave to ``set_timesteps``.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    num_train_timesteps: int = Field(default=1000, ge=1, le=TIMESTEPS_MAX)
    shift: float = Field(default=1.0, gt=0)
    use_dynamic_shifting: bool = False
    shift_terminal: float | None = Field(default=None, ge=0, lt=1)
    time_shift_type: Literal["exponential", "linear"] = "exponential"
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    mu: float | None = Field(default=None, allow_inf_nan=False)
    """The shift for the images' size, for ``use_dynamic_shifting``."""
    pipeline_sigmas: bool | None = None
    """Whether the pipeline gave ``linspace(1, 1 / steps, steps)`` as sigmas, as Flux does; without, steps run from the
    noisiest to the cleanest training timestep, as SD3's do. None: a pipeline that gave ``mu`` gave sigmas too."""


def parse_flow(config: Mapping[str, Any]) -> FlowConfig:
    """Read a diffusers scheduler configuration as ``FlowMatchEulerDiscreteScheduler.from_config`` does.

    Raises:
        ModelError: another process, a setting that is not supported, or one that contradicts itself.
    """
    kind = str(config.get("_class_name", FLOW_CLASS))
    if kind != FLOW_CLASS:
        raise ModelError(
            f"Scheduler '{kind}' does not describe a flow.",
            "Leave --scheduler out: the model's own is taken.",
        )
    for key, why in _LACKING.items():
        if config.get(key):
            raise ModelError(f"Scheduler configuration: {key} {why}, which is not supported.", _HINT)
    defaulted = set(config.get("_use_default_values") or ())
    try:
        parsed = FlowConfig.model_validate({k: v for k, v in config.items() if k not in defaulted})
    except ValidationError as error:
        item = error.errors()[0]
        key = ".".join(str(part) for part in item["loc"])
        raise ModelError(
            f"Scheduler configuration: {key} = {item['input']!r}: {item['msg']}.", _HINT
        ) from None
    if parsed.use_karras_sigmas and parsed.use_exponential_sigmas:
        raise ModelError(
            "Scheduler configuration: use_karras_sigmas and use_exponential_sigmas exclude each other.",
            "Keep one of them.",
        )
    if parsed.use_dynamic_shifting and parsed.mu is None:
        raise ModelError(
            "The flow's steps shift with the images' size (use_dynamic_shifting), and nothing says by how much.",
            "Calibrate from the whole pipeline, which gives 'mu', or add it to scheduler_config.json.",
        )
    if parsed.use_dynamic_shifting and parsed.time_shift_type == "linear" and (parsed.mu or 0.0) <= 0.0:
        raise ModelError(
            f"Scheduler configuration: mu = {parsed.mu} is not positive, as a linear shift needs it.", _HINT
        )
    return parsed


def make_sigmas(config: FlowConfig, steps: int) -> Float32:
    """Return the noise levels ``[steps + 1]`` float32 in (0, 1], falling, the last one 0.

    Raises:
        UsageError: fewer than one step, more than the model was trained with, or one that ends where it starts.
    """
    total = config.num_train_timesteps
    if not 1 <= steps <= total:
        raise UsageError(
            f"{steps} sampler steps: the model was trained with {total}.", f"Choose 1 to {total}."
        )
    levels = _shifted(config, _first_levels(config, steps))
    if config.shift_terminal:
        rest = 1 - levels
        if rest[-1] <= 0:
            raise UsageError(
                f"{steps} steps end at pure noise, and shift_terminal is {config.shift_terminal}.",
                "Choose more steps.",
            )
        levels = 1 - rest / (rest[-1] / (1 - config.shift_terminal))
    if config.use_karras_sigmas or config.use_exponential_sigmas:
        levels = _respaced(config, float(levels[0]), float(levels[-1]), steps)
    return np.append(levels.astype(np.float32), np.float32(0))


@dataclass(frozen=True)
class FlowSampler:
    """Euler steps of a rectified flow, noisiest first; holds no state of a trajectory.

    ``timesteps`` [S] are ``sigma * num_train_timesteps`` rounded, ``model_timesteps`` [S] what the network is fed of
    them, ``sigmas`` [S + 1] float32.
    """

    config: FlowConfig
    steps: int
    timesteps: Keys
    model_timesteps: ModelTimesteps
    sigmas: Float32

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        steps: int,
        *,
        timestep_dtype: str = "float32",
        timestep_scale: float = 1.0,
    ) -> FlowSampler:
        """Make the sampler from a diffusers scheduler configuration.

        Args:
            config: plain dict, as in ``scheduler_config.json``, with ``mu`` where the steps shift with the size.
            steps: sampler steps.
            timestep_dtype: what the network takes, ``float32`` or ``int64``.
            timestep_scale: what the network is fed is the timestep times this.

        Raises:
            ModelError: a configuration that is not supported, or fractional timesteps for a network that takes whole
                ones.
            UsageError: ``steps`` is out of range.
        """
        parsed = parse_flow(config)
        sigmas = make_sigmas(parsed, steps)
        timesteps = sigmas[:-1] * np.float32(parsed.num_train_timesteps)
        fed = model_timesteps_from(timesteps, timestep_dtype, timestep_scale)
        return cls(parsed, steps, distinct_keys(timesteps), fed, sigmas)

    def begin(self, seeds: Sequence[int]) -> FlowRun:  # noqa: ARG002 (nothing random is added on the way)
        """Start a batch of trajectories."""
        return FlowRun(self.sigmas)


@dataclass(frozen=True)
class FlowRun:
    """One batch of trajectories on its way; satisfies ``sampling.loop.SamplerRun``."""

    sigmas: Float32

    def start(self, noise: Float32) -> Float32:
        """Return the first state; a flow starts from unit noise."""
        return noise

    def model_input(self, sample: Float32, index: int) -> Float32:  # noqa: ARG002 (other samplers scale by step)
        """Return what the network sees; a flow does not scale it."""
        return sample

    def step(self, output: Float32, index: int, sample: Float32) -> Float32:
        """Return the next state ``[N, ...]`` float32 of any rank."""
        return np.asarray(sample + (self.sigmas[index + 1] - self.sigmas[index]) * output, dtype=np.float32)


def _first_levels(config: FlowConfig, steps: int) -> NDArray[Any]:
    """Return the levels before any shift; their type is the one that diffusers computes in."""
    given = config.mu is not None if config.pipeline_sigmas is None else config.pipeline_sigmas
    if given:
        return np.linspace(1.0, 1 / steps, steps).astype(np.float32)
    total = config.num_train_timesteps
    ends = np.array([total, 1], np.float32) / np.float32(total)
    if not config.use_dynamic_shifting:
        # the training levels are shifted, and what is made of them once more
        ends = _static(config.shift, ends)
    return np.linspace(float(ends[0]) * total, float(ends[1]) * total, steps) / total


def _shifted(config: FlowConfig, levels: NDArray[Any]) -> NDArray[Any]:
    if not config.use_dynamic_shifting:
        return _static(config.shift, levels)
    mu = config.mu or 0.0
    factor = math.exp(mu) if config.time_shift_type == "exponential" else mu
    # diffusers' formula has a power sigma here, and is always given 1
    return np.asarray(factor / (factor + (1 / levels - 1) ** 1.0))


def _static(shift: float, levels: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(shift * levels / (1 + (shift - 1) * levels))


def _respaced(config: FlowConfig, first: float, last: float, steps: int) -> NDArray[np.float64]:
    """Return levels between the same ends, equally spaced in their 7th root (Karras et al. 2022) or logarithm."""
    if config.use_exponential_sigmas:
        return np.exp(np.linspace(math.log(first), math.log(last), steps))
    high, low = first ** (1 / _KARRAS_RHO), last ** (1 / _KARRAS_RHO)
    return np.asarray((high + np.linspace(0, 1, steps) * (low - high)) ** _KARRAS_RHO)
