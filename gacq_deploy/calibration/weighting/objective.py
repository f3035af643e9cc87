"""What should a timestep's error cost? The user's objective as one coefficient a timestep.

Errors of noisy and of clean steps differ by orders of magnitude and do different damage. ``eps`` takes them as they
are, so the worst steps rule. ``sqnr`` divides each timestep's error by what it was: a decibel counts the same
everywhere. ``images`` multiplies by what an error of that step does to the final image, measured: the quantized model
predicts in one step of a trajectory, the float model in all others.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from gacq_deploy.calibration.weighting.bounds import project_weights
from gacq_deploy.models.base import Denoiser
from gacq_deploy.models.placement import to_host, to_tensor
from gacq_deploy.models.trajectories.drawn import draw_conditioning, trajectory_noise
from gacq_deploy.quant.layers import float_mode
from gacq_deploy.samples.conditioning import Conditions
from gacq_deploy.sampling.loop import SamplerRun, model_sampler
from gacq_deploy.spec import Float32

Objective = Literal["eps", "sqnr", "images"]

_RANGE = (0.01, 100.0)
"""Coefficients beyond it, at mean 1, would make all but a few timesteps noise."""
TRAJECTORIES = 16
"""On which an error's effect on the image is measured."""
_FLOOR = 1e-12


def step_means(losses: NDArray[np.float64], timesteps: NDArray[np.int64]) -> dict[int, float]:
    """Return timestep -> mean of ``losses`` [N] over its rows."""
    return {int(t): float(losses[timesteps == t].mean()) for t in np.unique(timesteps)}


def coefficients(
    objective: Objective, errors: Mapping[int, float], gains: Mapping[int, float] | None = None
) -> dict[int, float]:
    """Return timestep -> coefficient of its loss, of mean 1 over the timesteps.

    Args:
        objective: what counts.
        errors: timestep -> mean loss now.
        gains: timestep -> image error for one unit of output error; without them ``images`` means ``sqnr``, since the
            damage a block's error does to the image is not known.
    """
    steps = list(errors)
    if objective == "images" and gains is not None:
        raw = np.array([gains.get(t, 0.0) for t in steps])
    elif objective == "eps":
        raw = np.ones(len(steps))
    else:
        values = np.array([errors[t] for t in steps])
        # a step without error asks for nothing; it must not outweigh all others
        raw = np.where(values > _FLOOR * values.max(initial=0.0), 1 / np.maximum(values, 1e-300), 0.0)
    if not raw.any():
        return dict.fromkeys(steps, 1.0)
    bounded = project_weights(np.maximum(raw, _FLOOR * raw.max()), _RANGE)
    return dict(zip(steps, bounded.tolist(), strict=True))


def nearest_gains(gains: Mapping[int, float], timesteps: Iterable[int]) -> dict[int, float]:
    """Return timestep -> the gain of the nearest one measured: a pipeline's scheduler may walk other timesteps."""
    return {t: gains[min(gains, key=lambda other: abs(other - t))] for t in timesteps}


def gain_passes(steps: int) -> int:
    """Return how many predictions :func:`trajectory_gains` makes: to the end from every step, and two at each."""
    return 2 * steps + steps * (steps - 1) // 2


@torch.no_grad()
def trajectory_gains(
    denoiser: Denoiser,
    steps: int,
    seed: int,
    conditions: Conditions | None = None,
    advance: Callable[[], None] = lambda: None,
) -> dict[int, float]:
    """Return timestep -> squared error of the final state for one unit of squared output error at that step.

    Trajectories are the float model's, by its own sampler with ``steps`` steps, and guided where the conditions have a
    negative; the quantized model predicts once in each, for all branches.

    Args:
        denoiser: with quantizers.
        steps: sampler steps.
        seed: of the trajectories' noise and class labels.
        conditions: of prompts, taken in turn; None draws class labels.
        advance: called after every prediction, :func:`gain_passes` times.

    Raises:
        ModelError: no sampler can follow the model's schedule.
        CalibrationError: the denoiser needs an input that cannot be drawn.
    """
    sampler = model_sampler(denoiser.record, steps)
    if conditions is None:
        conditions = Conditions(draw_conditioning(denoiser, seed, TRAJECTORIES))
    predict = _Predictor(denoiser, conditions.cycle(TRAJECTORIES), advance)
    noise = [trajectory_noise(seed, i, denoiser.record.sample_shape) for i in range(TRAJECTORIES)]
    run = sampler.begin(range(TRAJECTORIES))
    state = run.start(np.stack(noise))
    fed = sampler.model_timesteps
    exact: list[tuple[SamplerRun, Float32, Float32]] = []
    with float_mode(denoiser.module):
        for index in range(len(fed)):
            output = predict(run.model_input(state, index), fed[index])
            # a sampler may remember earlier outputs: every departure needs a run of its own
            exact.append((copy.deepcopy(run), state, output))
            state = run.step(predict.guide(output), index, state)
    gains: dict[int, float] = {}
    for index, (departing, before, output) in enumerate(exact):
        quantized = predict(departing.model_input(before, index), fed[index])
        error = float(np.mean((quantized - output) ** 2, dtype=np.float64))
        final = departing.step(predict.guide(quantized), index, before)
        with float_mode(denoiser.module):
            for later in range(index + 1, len(fed)):
                following = predict(departing.model_input(final, later), fed[later])
                final = departing.step(predict.guide(following), later, final)
        damage = float(np.mean((final - state) ** 2, dtype=np.float64))
        gains[int(sampler.timesteps[index])] = damage / error if error > 0 else 0.0
    return gains


class _Predictor:
    """The denoiser in its present mode as a function of numpy states, all branches of guidance in one call."""

    def __init__(self, denoiser: Denoiser, conditions: Conditions, advance: Callable[[], None]) -> None:
        self._denoiser = denoiser
        self._advance = advance
        self.guide = conditions.guide
        self._branches = conditions.branches
        self._fed = {name: to_tensor(v, denoiser.device) for name, v in conditions.feeds().items()}

    def __call__(self, state: Float32, timestep: np.generic) -> Float32:
        """Return the prediction ``[branches * N, ...]`` of a state ``[N, ...]``."""
        sample = np.concatenate([state] * self._branches)
        rows = np.full(len(sample), timestep)
        output: Float32 = to_host(self._denoiser(to_tensor(sample), to_tensor(rows), self._fed))
        self._advance()
        return output
