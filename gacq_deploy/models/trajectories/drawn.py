"""Where do calibration samples come from? The float model's own DDIM trajectories, each run once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import DDIMScheduler
from numpy.typing import NDArray

from gacq_deploy.errors import CalibrationError
from gacq_deploy.models.base import Denoiser
from gacq_deploy.models.placement import to_host, to_tensor
from gacq_deploy.processes.group import ALONE, Group
from gacq_deploy.progress import SILENT, Reporter
from gacq_deploy.recipe.sections import SamplesSection
from gacq_deploy.samples.calibration_set import CONDITION_PREFIX
from gacq_deploy.samples.row_file import RowFile, SampleWriter
from gacq_deploy.spec import Array, Float32

_LABELS, _SPLIT = 1 << 40, 1 << 41
"""Second Philox keys of class labels and of the validation split, beyond those of noise: numbers of trajectories."""
COLLECT, PROBE_STATES = "collect samples", "collect states of the probe"
"""The stages, as they are announced."""


def trajectory_noise(seed: int, trajectory: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return the start of one trajectory: it depends on ``(seed, trajectory)`` alone, never on a batch."""
    generator = np.random.Generator(np.random.Philox(key=[seed, trajectory]))
    return generator.standard_normal(shape, dtype=np.float32)


def draw_conditioning(denoiser: Denoiser, seed: int, trajectories: int) -> dict[str, Array]:
    """Return one condition per trajectory; class labels, which alone can be drawn, are balanced and shuffled."""
    drawn: dict[str, Array] = {}
    for name, info in denoiser.record.conditioning.items():
        generator = np.random.Generator(np.random.Philox(key=[seed, _LABELS]))
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
    generator = np.random.Generator(np.random.Philox(key=[section.seed, _SPLIT]))
    flags = np.zeros(count, np.uint8)
    flags[generator.permutation(count)[:held]] = 1
    return flags


def collect_samples(
    denoiser: Denoiser,
    section: SamplesSection,
    path: Path,
    report: Reporter = SILENT,
    group: Group = ALONE,
    stage: str = COLLECT,
) -> None:
    """Run float DDIM trajectories and stream their states to ``path``.

    Every ``keep_every``-th step of every trajectory is kept, so all timesteps are equally represented. Seeds,
    classes, timesteps and noise do not depend on ``section.batch``. Other processes of the group have to call
    :func:`help_collect_samples` with what is broadcast; batches are the same whoever runs them, so rows are, too.

    Raises:
        CalibrationError: the float model's output is not finite.
        ResourceError: the disk is full, or another process of the group ended.
    """
    walk = _Walk(denoiser, section)
    report.stage(stage, walk.work(group))
    with SampleWriter(path, walk.layout()) as writer:
        group.broadcast(DrawnShare(section, writer.rows.path))
        walk.run(writer.rows, group, report)
        group.wait()


@dataclass(frozen=True)
class DrawnShare:
    """What other processes need to know to take their share of drawn trajectories."""

    section: SamplesSection
    file: Path


def help_collect_samples(denoiser: Denoiser, share: DrawnShare, group: Group) -> None:
    """Run this process's share of the batches into the file that the first process laid out.

    Raises:
        CalibrationError: the float model's output is not finite.
        ResourceError: another process of the group ended.
    """
    rows = RowFile(share.file)
    _Walk(denoiser, share.section).run(rows, group, SILENT)
    rows.close()
    group.wait()


class _Walk:
    """Trajectories that are drawn, batch by batch."""

    def __init__(self, denoiser: Denoiser, section: SamplesSection) -> None:
        self._denoiser = denoiser
        self._section = section
        self._scheduler: Any = DDIMScheduler.from_config(denoiser.record.scheduler)  # type: ignore[no-untyped-call]
        self._scheduler.set_timesteps(section.steps)
        self._kept = list(range(0, section.steps, section.keep_every))
        self._conditioning = draw_conditioning(denoiser, section.seed, section.trajectories)
        self._flags = validation_trajectories(section)

    def layout(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return the tensors of the file."""
        rows = self._section.trajectories * len(self._kept)
        return _layout(self._denoiser, self._conditioning, rows)

    def work(self, group: Group) -> int:
        """Return how many steps of single trajectories are this process's."""
        return sum(len(members) for members in self._batches(group)) * self._section.steps

    def run(self, rows: RowFile, group: Group, report: Reporter) -> None:
        """Run this process's batches and write their rows."""
        for members in self._batches(group):
            batch = {name: value[members] for name, value in self._conditioning.items()}
            states = _run(self._denoiser, self._scheduler, self._section, members, batch, report)
            _write(rows, states, members, batch, self._flags, self._kept)

    def _batches(self, group: Group) -> Iterator[NDArray[np.int64]]:
        count, size = self._section.trajectories, self._section.batch
        for number in group.indices(-(-count // size)):
            yield np.arange(number * size, min((number + 1) * size, count))


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


class _State(NamedTuple):
    """One step of a batch of trajectories: states and model outputs ``[N, ...]``, and the timestep."""

    latents: Float32
    targets: Float32
    timestep: int


@torch.no_grad()
def _run(
    denoiser: Denoiser,
    scheduler: Any,
    section: SamplesSection,
    members: NDArray[np.int64],
    conditioning: Mapping[str, Array],
    report: Reporter,
) -> list[_State]:
    """Return the states of every step for one batch of trajectories."""
    noise = [trajectory_noise(section.seed, int(i), denoiser.record.sample_shape) for i in members]
    device = denoiser.device
    x = to_tensor(np.stack(noise), device) * float(scheduler.init_noise_sigma)
    condition = {name: to_tensor(value, device) for name, value in conditioning.items()}
    states = []
    for t in scheduler.timesteps:
        output = denoiser(x, t.expand(len(members)), condition)
        if not bool(torch.isfinite(output).all()):
            raise CalibrationError(
                f"The float model's output is not finite at timestep {int(t)} "
                f"(trajectories {members[0]}..{members[-1]}).",
                "Check the weights, their dtype and the scheduler's configuration.",
            )
        states.append(_State(to_host(x), to_host(output), int(t)))
        x = scheduler.step(output, int(t), x).prev_sample
        report.advance(len(members))
    return states


def _write(
    writer: RowFile,
    states: list[_State],
    members: NDArray[np.int64],
    conditioning: Mapping[str, Array],
    flags: NDArray[np.uint8],
    kept: list[int],
) -> None:
    count = len(kept)
    timesteps = [states[k].timestep for k in kept]
    for offset, trajectory in enumerate(members):
        latents = [states[k].latents[offset] for k in kept]
        targets = [states[k].targets[offset] for k in kept]
        rows: dict[str, Array] = {
            "latents": np.stack(latents),
            "targets": np.stack(targets),
            "timesteps": np.array(timesteps, np.int64),
            "trajectory": np.full(count, trajectory, np.int64),
            "step": np.array(kept, np.int64),
            "validation": np.full(count, flags[trajectory], np.uint8),
        }
        for name, value in conditioning.items():
            rows[f"{CONDITION_PREFIX}{name}"] = np.repeat(value[offset : offset + 1], count, 0)
        writer.write(int(trajectory) * count, rows)
