"""Where do the calibration samples of a text-to-image model come from? Its own pipeline's trajectories, as they run.

What is kept are the calls that the pipeline really makes of its denoiser, with its own scheduler and guidance: states,
timesteps, all conditioning, and the float outputs. Both rows of a guidance pair are kept, under one trajectory.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gacq_deploy.errors import CalibrationError, ModelError
from gacq_deploy.models.call_capture import CallCapture, CapturedCall
from gacq_deploy.models.call_recorder import RecordedCall, captured_timestep, conditioning_rows
from gacq_deploy.models.pipelines import OpenPipeline
from gacq_deploy.models.trajectories.drawn import validation_trajectories
from gacq_deploy.processes.group import ALONE, Group
from gacq_deploy.progress import Reporter
from gacq_deploy.recipe.sections import SamplesSection
from gacq_deploy.samples.calibration_set import CalibrationSet, TableRows
from gacq_deploy.samples.prompts import BUILTIN, draw_prompts
from gacq_deploy.sampling.timesteps import training_keys

_SEED_STRIDE = 1 << 20
"""Between the trajectories of two seeds."""


@dataclass(frozen=True)
class Wanted:
    """Trajectories to run: ``count`` of them, with prompts from ``first_prompt`` on in the seeded order."""

    prompts: tuple[str, ...]
    prompt_seed: int
    first_prompt: int
    count: int
    seed: int
    steps: int
    keep_every: int
    batch: int
    guidance_scale: float | None
    validation: NDArray[np.uint8]


def wanted_samples(section: SamplesSection) -> Wanted:
    """Return the trajectories that calibration learns from."""
    return Wanted(
        prompts=section.prompts or BUILTIN,
        prompt_seed=section.seed,
        first_prompt=0,
        count=section.trajectories,
        seed=section.seed,
        steps=section.steps,
        keep_every=section.keep_every,
        batch=section.batch,
        guidance_scale=section.guidance_scale,
        validation=validation_trajectories(section),
    )


def wanted_probe(section: SamplesSection, trajectories: int, seed: int) -> Wanted:
    """Return other trajectories, with the prompts that follow in the order, unseen if there are enough of them."""
    return replace(
        wanted_samples(section),
        first_prompt=section.trajectories,
        count=trajectories,
        seed=seed,
        keep_every=1,
        validation=np.zeros(trajectories, np.uint8),
    )


def walk_share(
    opened: OpenPipeline, recorded: RecordedCall, wanted: Wanted, report: Reporter, group: Group = ALONE
) -> Iterator[tuple[int, CalibrationSet]]:
    """Run this process's batches of trajectories; yield number and rows of each.

    Raises:
        ModelError: a trajectory calls the denoiser otherwise than the recorded one did.
        CalibrationError: the float model's output is not finite.
    """
    for number in group.indices(-(-wanted.count // wanted.batch)):
        members = range(number * wanted.batch, min((number + 1) * wanted.batch, wanted.count))
        yield number, _run(opened, recorded, wanted, members)
        report.advance(len(members) * wanted.steps)


def _run(
    opened: OpenPipeline, recorded: RecordedCall, wanted: Wanted, members: Sequence[int]
) -> CalibrationSet:
    """Run one batch of trajectories together; rows are ordered by trajectory, step, branch."""
    numbers = itertools.count()
    kept: list[CapturedCall] = []

    def keep(seen: CapturedCall) -> None:
        number = next(numbers)
        if not bool(torch.isfinite(seen.output).all()):
            raise CalibrationError(
                f"The float model's output is not finite in step {number} "
                f"(trajectories {members[0]}..{members[-1]}).",
                "Check the weights, their dtype and the scheduler's configuration.",
            )
        if number % wanted.keep_every == 0:
            kept.append(seen)

    prompts = draw_prompts(wanted.prompts, wanted.prompt_seed, wanted.first_prompt + members[0], len(members))
    seeds = [wanted.seed * _SEED_STRIDE + member for member in members]
    with CallCapture(opened.denoiser, keep=keep).capturing():
        opened.run(prompts, seeds, wanted.steps, wanted.guidance_scale)
    return _arrange(recorded, kept, wanted, members)


def _arrange(
    recorded: RecordedCall, kept: Sequence[CapturedCall], wanted: Wanted, members: Sequence[int]
) -> CalibrationSet:
    call = recorded.recording.call
    images, branches = len(members), recorded.layout.branches
    order = np.array(recorded.layout.rows(images))  # [image, branch] -> row
    state, fed, output = [], [], []
    for seen in kept:
        tensors = seen.tensors
        if (
            set(tensors) != set(kept[0].tensors)
            or tuple(tensors[call.state.path].shape[1:]) != call.state.shape
        ):
            raise ModelError(
                "The pipeline changed how it calls its denoiser within a trajectory.",
                "Only one shape of state and one set of arguments are supported.",
            )
        state.append(tensors[call.state.path].float().cpu().numpy()[order])
        output.append(seen.output[:, : call.state.shape[0]].float().cpu().numpy()[order])
        fed.append(captured_timestep(call, seen, images * branches))
    steps = len(kept)
    shape = (images * steps * branches, *call.state.shape)
    values = np.array(fed, np.float64)

    def rows(value: NDArray[Any]) -> NDArray[Any]:
        return np.repeat(np.tile(value, images), branches)

    conditioning = _conditioning(recorded, kept[0], order)
    index = np.arange(images * branches).reshape(images, 1, branches).repeat(steps, 1).ravel()
    tables = {name: TableRows(value, index.astype(np.int64)) for name, value in conditioning.items()}
    fraction = call.timestep.dtype == "float32"
    return CalibrationSet(
        latents=np.stack(state, 1).reshape(shape),
        targets=np.stack(output, 1).reshape(shape),
        timesteps=rows(training_keys(values, call.timestep.scale)),
        float_timesteps=rows(values.astype(np.float32)) if fraction else None,
        conditioning=tables,
        trajectory=np.repeat(np.array(members, np.int64), steps * branches),
        step=rows(np.arange(0, steps * wanted.keep_every, wanted.keep_every, dtype=np.int64)),
        validation=np.repeat(wanted.validation[list(members)], steps * branches),
    )


def _conditioning(
    recorded: RecordedCall, seen: CapturedCall, order: NDArray[np.int64]
) -> Mapping[str, NDArray[Any]]:
    rows = [int(r) for r in order.ravel()]
    chosen = conditioning_rows(recorded.recording.call, seen.tensors, rows)
    return {name: value.cpu().numpy() for name, value in chosen.items()}


def check_lengths(trajectories: Sequence[NDArray[np.int64]]) -> None:
    """Refuse batches, given by the trajectory of each row, whose trajectories are of different lengths.

    Raises:
        ModelError: the pipeline calls its denoiser more often in some than in others.
    """
    steps = {len(t) // len(np.unique(t)) for t in trajectories}
    if len(steps) != 1:
        raise ModelError(
            f"Trajectories have {' or '.join(map(str, sorted(steps)))} rows.",
            "Only pipelines with a fixed number of calls are supported.",
        )
