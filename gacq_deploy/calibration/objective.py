"""What should a timestep's error cost? The user's objective as one coefficient a timestep.

Errors of noisy and of clean steps differ by orders of magnitude and do different damage. ``eps`` takes them as they
are, so the worst steps rule. ``sqnr`` divides each timestep's error by what it was: a decibel counts the same
everywhere. ``images`` multiplies by what an error of that step does to the final image, measured: the quantized model
answers in one step of a trajectory, the float model in all others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from diffusers import DDIMScheduler
from numpy.typing import NDArray
from torch import Tensor

from gacq_deploy.calibration.bounds import project_weights
from gacq_deploy.models.base import Denoiser
from gacq_deploy.models.trajectory import draw_conditioning, initial_noise
from gacq_deploy.quant.layers import float_mode

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


@torch.no_grad()
def trajectory_gains(denoiser: Denoiser, steps: int, seed: int) -> dict[int, float]:
    """Return timestep -> squared error of the final image for one unit of squared output error at that step.

    Trajectories are the float model's, DDIM with ``steps`` steps; the quantized model answers once in each.
    """
    scheduler: Any = DDIMScheduler.from_config(denoiser.record.scheduler)  # type: ignore[no-untyped-call]
    scheduler.set_timesteps(steps)
    noise = [initial_noise(seed, i, denoiser.record.sample_shape) for i in range(TRAJECTORIES)]
    start = torch.from_numpy(np.stack(noise)).clone() * float(scheduler.init_noise_sigma)
    drawn = draw_conditioning(denoiser, seed, TRAJECTORIES)
    condition = {name: torch.from_numpy(value) for name, value in drawn.items()}

    def answer(x: Tensor, t: Tensor) -> Tensor:
        return denoiser(x, t.expand(TRAJECTORIES), condition)

    def walk(x: Tensor, first: int) -> list[Tensor]:
        """Return the states from step ``first`` on, the final one included."""
        states = [x]
        for t in scheduler.timesteps[first:]:
            states.append(scheduler.step(answer(states[-1], t), int(t), states[-1]).prev_sample)
        return states

    gains = {}
    with float_mode(denoiser.module):
        exact = walk(start, 0)
    for i, t in enumerate(scheduler.timesteps):
        quantized = answer(exact[i], t)
        with float_mode(denoiser.module):
            error = float((quantized - answer(exact[i], t)).pow(2).mean())
            final = walk(scheduler.step(quantized, int(t), exact[i]).prev_sample, i + 1)[-1]
        damage = float((final - exact[-1]).pow(2).mean())
        gains[int(t)] = damage / error if error > 0 else 0.0
    return gains
