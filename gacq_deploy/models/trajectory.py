"""Where do calibration samples come from? The float model's own DDIM trajectories, each run once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler
from numpy.typing import NDArray
from torch import Tensor

from gacq_deploy.errors import CalibrationError
from gacq_deploy.models.base import Denoiser
from gacq_deploy.progress import SILENT, Reporter
from gacq_deploy.recipe import SamplesSection
from gacq_deploy.samples import CONDITION_PREFIX, SampleWriter

Array = NDArray[Any]


def initial_noise(seed: int, trajectory: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return the start of one trajectory: it depends on ``(seed, trajectory)`` alone, never on a batch."""
    generator = np.random.Generator(np.random.Philox(key=[seed, trajectory]))
    return generator.standard_normal(shape, dtype=np.float32)


def draw_conditioning(denoiser: Denoiser, seed: int, trajectories: int) -> dict[str, Array]:
    """Return one condition per trajectory; class labels, which alone can be drawn, are balanced and shuffled."""
    drawn: dict[str, Array] = {}
    for name, info in denoiser.record.conditioning.items():
        generator = np.random.Generator(np.random.Philox(key=[seed, 1 << 40]))
        drawn[name] = generator.permutation(
            np.arange(trajectories, dtype=np.int64) % int(info["num_classes"])
        )
    return drawn


def validation_trajectories(section: SamplesSection) -> NDArray[np.uint8]:
    """Return 1 for each held-out trajectory; the split is by trajectory, so no state leaks."""
    count = section.trajectories
    held = (
        max(1, round(section.validation_share * count)) if section.validation_share > 0 and count > 1 else 0
    )
    generator = np.random.Generator(np.random.Philox(key=[section.seed, 1 << 41]))
    flags = np.zeros(count, np.uint8)
    flags[generator.permutation(count)[:held]] = 1
    return flags


def collect_samples(
    denoiser: Denoiser, section: SamplesSection, path: Path, report: Reporter = SILENT
) -> None:
    """Run float DDIM trajectories and stream their states to ``path``.

    Every ``keep_every``-th step of every trajectory is kept, so all timesteps are equally represented. Seeds,
    classes, timesteps and noise do not depend on ``section.batch``.

    Raises:
        CalibrationError: the float model's output is not finite.
    """
    scheduler = DDIMScheduler.from_config(denoiser.record.scheduler)  # type: ignore[no-untyped-call]
    scheduler.set_timesteps(section.steps)
    kept = list(range(0, section.steps, section.keep_every))
    conditioning = draw_conditioning(denoiser, section.seed, section.trajectories)
    flags = validation_trajectories(section)
    rows = section.trajectories * len(kept)
    report.stage("collect samples", section.trajectories * section.steps)
    with SampleWriter(path, _layout(denoiser, conditioning, rows)) as writer:
        for first in range(0, section.trajectories, section.batch):
            members = np.arange(first, min(first + section.batch, section.trajectories))
            batch = {name: value[members] for name, value in conditioning.items()}
            states = _run(denoiser, scheduler, section, members, batch, report)
            _write(writer, states, members, batch, flags, kept)


def _layout(
    denoiser: Denoiser, conditioning: Mapping[str, Array], rows: int
) -> dict[str, tuple[str, tuple[int, ...]]]:
    shape = (rows, *denoiser.record.sample_shape)
    layout: dict[str, tuple[str, tuple[int, ...]]] = {
        "latents": ("float32", shape),
        "targets": ("float32", shape),
        "timesteps": ("int64", (rows,)),
        "trajectory": ("int64", (rows,)),
        "step": ("int64", (rows,)),
        "validation": ("uint8", (rows,)),
    }
    for name, value in conditioning.items():
        layout[f"{CONDITION_PREFIX}{name}"] = (value.dtype.name, (rows, *value.shape[1:]))
    return layout


@torch.no_grad()
def _run(
    denoiser: Denoiser,
    scheduler: Any,
    section: SamplesSection,
    members: NDArray[np.int64],
    conditioning: Mapping[str, Array],
    report: Reporter,
) -> list[tuple[Tensor, Tensor, int]]:
    """Return (state, model output, timestep) of every step for one batch of trajectories."""
    noise = [initial_noise(section.seed, int(i), denoiser.record.sample_shape) for i in members]
    # cloned: torch's own memory is aligned, numpy's is not, and sums differ in the last bits
    x = torch.from_numpy(np.stack(noise)).clone() * float(scheduler.init_noise_sigma)
    condition = {name: torch.from_numpy(value) for name, value in conditioning.items()}
    states = []
    for t in scheduler.timesteps:
        output = denoiser(x, t.expand(len(members)), condition)
        if not bool(torch.isfinite(output).all()):
            raise CalibrationError(
                f"The float model's output is not finite at timestep {int(t)} "
                f"(trajectories {members[0]}..{members[-1]}).",
                "Check the weights, their dtype and the scheduler's configuration.",
            )
        states.append((x, output, int(t)))
        x = scheduler.step(output, int(t), x).prev_sample
        report.advance(len(members))
    return states


def _write(
    writer: SampleWriter,
    states: list[tuple[Tensor, Tensor, int]],
    members: NDArray[np.int64],
    conditioning: Mapping[str, Array],
    flags: NDArray[np.uint8],
    kept: list[int],
) -> None:
    for offset, trajectory in enumerate(members):
        steps = np.array(kept, np.int64)
        count = len(kept)
        writer.write(
            int(trajectory) * count,
            {
                "latents": np.stack([states[k][0][offset].numpy() for k in kept]),
                "targets": np.stack([states[k][1][offset].numpy() for k in kept]),
                "timesteps": np.array([states[k][2] for k in kept], np.int64),
                "trajectory": np.full(count, trajectory, np.int64),
                "step": steps,
                "validation": np.full(count, flags[trajectory], np.uint8),
                **{
                    f"{CONDITION_PREFIX}{n}": np.repeat(v[offset : offset + 1], count, 0)
                    for n, v in conditioning.items()
                },
            },
        )
