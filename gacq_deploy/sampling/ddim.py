"""How does DDIM step from noise to image? In numpy, equal to diffusers' ``DDIMScheduler``.

Song et al. 2021, eq. 12. Cumulative alphas come with the model's record, bit for bit those of its scheduler: at the
noisiest timesteps a last bit of ``alpha`` is multiplied by a thousand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gacq_deploy.errors import RESTORE, ModelError, UsageError
from gacq_deploy.sampling.timesteps import TIMESTEPS_MAX, ModelTimesteps, model_timesteps_from
from gacq_deploy.spec import Float32

SAME_PROCESS = frozenset(
    {
        "DDIMScheduler",
        "DDPMScheduler",
        "PNDMScheduler",
        "LMSDiscreteScheduler",
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "HeunDiscreteScheduler",
        "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler",
        "KDPM2DiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "DEISMultistepScheduler",
        "UniPCMultistepScheduler",
    }
)
"""Scheduler classes of diffusers whose configuration describes the same noising process."""

_CLIPPING = frozenset({"DDIMScheduler", "DDPMScheduler"})
"""Of these, the classes that clip, and whose configuration therefore says whether they do."""
HINT = "Choose another scheduler: `run --scheduler NAME` takes any scheduler class of diffusers."
_NOISE_STREAM = 1 << 50
"""Second Philox key of sampling noise, apart from the trajectories calibration learns from."""


class DdimConfig(BaseModel):
    """What DDIM reads from a diffusers scheduler configuration; defaults are ``DDIMScheduler``'s."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    num_train_timesteps: int = Field(default=1000, ge=1, le=TIMESTEPS_MAX)
    clip_sample: bool = True
    clip_sample_range: float = Field(default=1.0, gt=0)
    set_alpha_to_one: bool = True
    steps_offset: int = Field(default=0, ge=0)
    prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon"
    thresholding: bool = False
    dynamic_thresholding_ratio: float = Field(default=0.995, gt=0, le=1)
    sample_max_value: float = Field(default=1.0, gt=0)
    timestep_spacing: Literal["leading", "trailing", "linspace"] = "leading"


def parse_scheduler(config: Mapping[str, Any]) -> DdimConfig:
    """Read a diffusers scheduler configuration as ``DDIMScheduler.from_config`` does, but for what it does not say.

    Keys listed under ``_use_default_values`` were defaults of the *other* class and are dropped. DDIM's own default is
    to clip; a class that never clips does not say so, and its latents would be cut off.

    Raises:
        ModelError: another noising process, or a value DDIM does not know.
    """
    kind = str(config.get("_class_name", "DDIMScheduler"))
    if kind not in SAME_PROCESS or config.get("use_flow_sigmas"):
        raise ModelError(f"Scheduler '{kind}' does not describe a process that DDIM can follow.", HINT)
    defaulted = set(config.get("_use_default_values") or ())
    unsaid = {} if kind in _CLIPPING else {"clip_sample": False}
    try:
        said = {k: v for k, v in config.items() if k not in defaulted}
        return DdimConfig.model_validate(unsaid | said)
    except ValidationError as error:
        item = error.errors()[0]
        key = ".".join(str(part) for part in item["loc"])
        raise ModelError(
            f"Scheduler configuration: {key} = {item['input']!r}: {item['msg']}.", HINT
        ) from None


def make_timesteps(config: DdimConfig, steps: int) -> NDArray[np.int64]:
    """Return the timesteps of ``steps`` sampler steps, noisiest first.

    Raises:
        UsageError: fewer than one step, or more than the model was trained with.
    """
    total = config.num_train_timesteps
    chosen: NDArray[Any]
    if not 1 <= steps <= total:
        raise UsageError(
            f"{steps} sampler steps: the model was trained with {total}.", f"Choose 1 to {total}."
        )
    match config.timestep_spacing:
        case "linspace":
            chosen = np.linspace(0, total - 1, steps).round()[::-1]
        case "leading":
            chosen = (np.arange(steps) * (total // steps))[::-1] + config.steps_offset
        case "trailing":
            chosen = np.round(np.arange(total, 0, -total / steps)) - 1
    timesteps = np.ascontiguousarray(chosen, dtype=np.int64)
    if int(timesteps[0]) >= total:
        raise UsageError(
            f"{steps} steps with steps_offset {config.steps_offset} begin at {timesteps[0]} of {total}.",
            f"Choose at most {total // 2} steps.",
        )
    return timesteps


def initial_noise(seeds: Sequence[int], shape: tuple[int, ...]) -> Float32:
    """Return standard normal noise ``[N, *shape]``; row i depends on ``seeds[i]`` alone.

    Raises:
        UsageError: a seed outside 0 .. 2**63 - 1.
    """
    return np.stack([g.standard_normal(shape, dtype=np.float32) for g in noise_streams(seeds, _NOISE_STREAM)])


def check_seeds(seeds: Sequence[int]) -> None:
    """Refuse seeds that some generator would not take.

    Raises:
        UsageError: a seed outside 0 .. 2**63 - 1.
    """
    for seed in seeds:
        if not 0 <= seed < 1 << 63:
            raise UsageError(f"Seed {seed} is out of range.", "Seeds are whole numbers from 0 to 2**63 - 1.")


def noise_streams(seeds: Sequence[int], stream: int) -> list[np.random.Generator]:
    """Return one counter-based generator per seed; different ``stream`` numbers are independent.

    Raises:
        UsageError: a seed outside 0 .. 2**63 - 1.
    """
    check_seeds(seeds)
    return [np.random.Generator(np.random.Philox(key=[int(seed), stream])) for seed in seeds]


@dataclass(frozen=True)
class DdimSampler:
    """DDIM over fixed timesteps ``[S]`` int64, noisiest first; holds no state of a trajectory."""

    config: DdimConfig
    steps: int
    eta: float
    timesteps: NDArray[np.int64]
    alphas: Float32
    """Cumulative alphas of all training timesteps, ``[T]``."""
    model_timesteps: ModelTimesteps
    """What the network is fed of ``timesteps``, ``[S]``."""

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        steps: int,
        eta: float = 0.0,
        *,
        alphas: Sequence[float] | None,
        timestep_dtype: str = "int64",
        timestep_scale: float = 1.0,
    ) -> DdimSampler:
        """Make the sampler from a diffusers scheduler configuration (DDIM, DDPM and their relatives).

        Args:
            config: plain dict, as in ``scheduler_config.json``.
            steps: sampler steps.
            eta: 0 is deterministic, 1 adds as much noise as DDPM.
            alphas: cumulative products of ``1 - beta`` [T] float32, of the same schedule.
            timestep_dtype: what the network takes, ``int64`` or ``float32``.
            timestep_scale: what the network is fed is the timestep times this.

        Raises:
            ModelError: a configuration that DDIM cannot follow.
            UsageError: ``steps`` or ``eta`` is out of range.
        """
        if not 0.0 <= eta <= 1.0:
            raise UsageError(f"eta is {eta}.", "Choose 0 (deterministic) to 1 (as noisy as DDPM).")
        parsed = parse_scheduler(config)
        timesteps = make_timesteps(parsed, steps)
        if alphas is None or len(alphas) != parsed.num_train_timesteps:
            raise ModelError(
                f"The model's record holds {len(alphas or ())} cumulative alphas, num_train_timesteps is "
                f"{parsed.num_train_timesteps}.",
                RESTORE,
            )
        if parsed.prediction_type == "epsilon" and alphas[timesteps[0]] == 0.0:
            raise ModelError(
                "An epsilon-predicting model cannot start at zero signal (rescale_betas_zero_snr).",
                "Set timestep_spacing to 'leading' in the scheduler's configuration.",
            )
        fed = model_timesteps_from(timesteps, timestep_dtype, timestep_scale)
        return cls(parsed, steps, eta, timesteps, np.array(alphas, np.float32), fed)

    def begin(self, seeds: Sequence[int]) -> DdimRun:
        """Start a batch of trajectories; row i's added noise (eta > 0) depends on ``seeds[i]`` alone."""
        # another stream than that of the noise a trajectory starts from
        return DdimRun(self, noise_streams(seeds, _NOISE_STREAM + 1))

    def step(self, output: Float32, index: int, sample: Float32, noise: Float32 | None = None) -> Float32:
        """Return the state before ``timesteps[index]`` was noised.

        Args:
            output: the model's output ``[N, ...]`` float32, read by the configured prediction type.
            index: position in ``timesteps``.
            sample: the state at that timestep ``[N, ...]`` float32.
            noise: standard normal noise ``[N, ...]``; needed when eta > 0.

        Raises:
            UsageError: eta > 0 without noise.
        """
        alpha, alpha_prev = self._alpha_pair(index)
        clean, epsilon = self._predict(output, sample, alpha)
        clean = self._bound(clean)
        variance = (1 - alpha_prev) / (1 - alpha) * (1 - alpha / alpha_prev)
        direction = np.float32(math.sqrt(max(1 - alpha_prev - self.eta**2 * variance, 0.0)))
        previous = np.float32(math.sqrt(alpha_prev)) * clean + direction * epsilon
        if self.eta > 0:
            if noise is None:
                raise UsageError(
                    f"DDIM with eta = {self.eta} needs noise.", "Pass it, or sample through begin()."
                )
            previous = previous + np.float32(self.eta * math.sqrt(max(variance, 0.0))) * noise
        return np.asarray(previous, dtype=np.float32)

    def _alpha_pair(self, index: int) -> tuple[float, float]:
        """Return cumulative alphas at the step and before it, in double: eta = 1 subtracts near equals."""
        timestep = int(self.timesteps[index])
        before = timestep - self.config.num_train_timesteps // self.steps
        final = 1.0 if self.config.set_alpha_to_one else float(self.alphas[0])
        return float(self.alphas[timestep]), float(self.alphas[before]) if before >= 0 else final

    def _predict(self, output: Float32, sample: Float32, alpha: float) -> tuple[Float32, Float32]:
        """Return (predicted clean sample, predicted noise)."""
        root_alpha, root_beta = np.float32(math.sqrt(alpha)), np.float32(math.sqrt(1 - alpha))
        match self.config.prediction_type:
            case "epsilon":
                return np.asarray((sample - root_beta * output) / root_alpha), output
            case "sample":
                return output, np.asarray((sample - root_alpha * output) / root_beta)
            case "v_prediction":
                return root_alpha * sample - root_beta * output, root_alpha * output + root_beta * sample

    def _bound(self, clean: Float32) -> Float32:
        config = self.config
        if config.thresholding:
            flat = np.abs(clean.reshape(len(clean), -1))
            limit = np.quantile(flat, config.dynamic_thresholding_ratio, axis=1).astype(np.float32)
            limit = np.minimum(np.maximum(limit, np.float32(1)), np.float32(config.sample_max_value))
            limit = limit.reshape(-1, *[1] * (clean.ndim - 1))
            return np.asarray(np.clip(clean, -limit, limit) / limit)
        if config.clip_sample:
            return np.clip(clean, np.float32(-config.clip_sample_range), np.float32(config.clip_sample_range))
        return clean


@dataclass(frozen=True)
class DdimRun:
    """One batch of trajectories on its way; satisfies ``sampling.loop.SamplerRun``."""

    sampler: DdimSampler
    streams: list[np.random.Generator]

    def start(self, noise: Float32) -> Float32:
        """Return the first state; DDIM starts from unit noise."""
        return noise

    def model_input(self, sample: Float32, index: int) -> Float32:  # noqa: ARG002 (other samplers scale by step)
        """Return what the network sees; DDIM does not scale it."""
        return sample

    def step(self, output: Float32, index: int, sample: Float32) -> Float32:
        """Return the next state."""
        noise = None
        if self.sampler.eta > 0:
            noise = np.stack([g.standard_normal(sample.shape[1:], dtype=np.float32) for g in self.streams])
        return self.sampler.step(output, index, sample, noise)
