"""Diagnostics that look like those of a real calibration, without one: what reports and checks are shown."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gacq_deploy.artifact.diagnostics import Diagnostics, StageWeights

BLOCKS = ("down_blocks.0.resnets.0", "mid_block.attentions.0", "up_blocks.1.resnets.0")
_GAIN_DB = {"nearest": 0.0, "reconstruction": 3.5, "polish": 4.8}


def example_diagnostics(
    *,
    trajectories: int = 12,
    steps: int = 10,
    groups: int = 5,
    blocks: Sequence[str] = BLOCKS,
    mode: str = "gac",
    polish: bool = True,
    seed: int = 0,
) -> Diagnostics:
    """Return ``trajectories * steps`` rows and one learned stage a block, the polish last if there is one.

    Noisy groups disagree with clean ones; samples that disagree weigh less; the cleanest timesteps err most.
    ``mode="uniform"`` gives weights of 1 and nothing that is learned.
    """
    rng = np.random.default_rng(seed)
    distinct = np.linspace(990, 10, steps).round().astype(np.int64)
    timesteps = np.tile(distinct, trajectories)
    group = np.tile(np.arange(steps, dtype=np.int64) * groups // steps, trajectories)
    names = (*blocks, "polish") if polish else tuple(blocks)
    sqnr = np.linspace(38, 18, steps)
    stages = [s for s in _GAIN_DB if polish or s != "polish"]
    return Diagnostics(
        timesteps=timesteps,
        trajectory=np.repeat(np.arange(trajectories, dtype=np.int64), steps),
        groups=group,
        stages=tuple(example_stage(name, group, mode=mode, count=groups, rng=rng) for name in names),
        error_timesteps=distinct,
        error_sqnr_db={
            s: (sqnr + _GAIN_DB[s] + rng.normal(0, 0.3, steps)).astype(np.float32) for s in stages
        },
    )


def example_stage(
    name: str, group: NDArray[np.int64], *, mode: str, count: int, rng: np.random.Generator
) -> StageWeights:
    """Return what a stage learned about rows of these timestep groups [N], of which there are ``count``."""
    rows = group.size
    if mode == "uniform":
        ones = np.ones(rows, np.float32)
        return StageWeights(name, mode, ones, None, None, None, float(rows), {}, ())
    far = np.linspace(-0.3, 0.6, count)[group]
    alignment = np.clip(far + rng.normal(0, 0.25, rows), -1, 1).astype(np.float32)
    weights = np.clip(np.exp(0.8 * (alignment - alignment.mean())), 0.1, 10)
    weights /= weights.mean()
    decay = np.linspace(0, 1, 20)
    trace = {
        "loss": 0.02 * np.exp(-2 * decay) + rng.normal(0, 2e-4, decay.size),
        "cosine": 0.15 + 0.4 * decay + rng.normal(0, 0.02, decay.size),
        "ratio": 0.3 + 0.1 * decay + rng.normal(0, 0.01, decay.size),
    }
    return StageWeights(
        stage=name,
        mode=mode,
        weights=weights.astype(np.float32),
        alignment=alignment,
        cosine_before=_cosines(count, 0.9),
        cosine_after=_cosines(count, 0.45),
        effective_samples=float(weights.sum() ** 2 / (weights**2).sum()),
        trace={key: values.astype(np.float32) for key, values in trace.items()},
        notes=(f"group {count - 1} holds more than half of the gradient",) if name == "polish" else (),
    )


def _cosines(count: int, fall: float) -> NDArray[np.float32]:
    """Return group cosines [count, count] that fall by ``fall`` for every group between two of them."""
    number = np.arange(count)
    far = np.abs(number[:, None] - number[None, :]).astype(np.float32)
    return np.asarray(np.clip(1 - fall * far / 2, -1, 1), np.float32)
