"""What will the user see? The candidate beside the float model: single steps, whole trajectories, images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gacq_deploy.artifact.call import SAMPLE, TIMESTEP
from gacq_deploy.artifact.probe import Probe
from gacq_deploy.artifact.records import ModelRecord
from gacq_deploy.backends.base import Engine
from gacq_deploy.metrics.arrays import by_bucket, cosine, sqnr_db
from gacq_deploy.metrics.error_difference import Number, finite
from gacq_deploy.metrics.images import is_image, psnr, ssim, value_range
from gacq_deploy.parity.report import Comparison, measured
from gacq_deploy.recipe.sections import ParitySection
from gacq_deploy.samples.calibration_set import timestep_buckets
from gacq_deploy.samples.conditioning import Conditions
from gacq_deploy.sampling.loop import Sampler, generate, model_sampler
from gacq_deploy.spec import Array
from gacq_deploy.storage.digests import digest_array


@dataclass(frozen=True)
class FloatTrajectories:
    """Free-running trajectories of N images over S steps, noisiest first.

    ``states`` [S, N, ...] as the network saw them; ``outputs`` [S, branches * N, ...] its predictions, with guidance
    those for the negative conditions first; ``timesteps`` [S] on the training scale; ``final`` [N, ...].
    """

    states: NDArray[np.float32]
    outputs: NDArray[np.float32]
    timesteps: NDArray[np.int64]
    final: NDArray[np.float32]


@dataclass(frozen=True)
class Held:
    """The held-out start of every trajectory: seeds, and the conditions of each."""

    sampler: Sampler
    shape: tuple[int, ...]
    seeds: tuple[int, ...]
    conditions: Conditions
    batch: int


def hold_out(
    record: ModelRecord,
    probe: Probe,
    section: ParitySection,
    batch: int,
) -> Held:
    """Choose seeds, and conditions in turn: those of prompts, else every real class, or what the probe holds."""
    seeds = tuple(range(section.seed, section.seed + section.images))
    sampler = model_sampler(record, section.steps)
    if probe.conditions is not None:
        return Held(sampler, record.sample_shape, seeds, probe.conditions.cycle(len(seeds)), batch)
    conditioning = {}
    for name, info in record.conditioning.items():
        if info.get("num_classes") and not tuple(info.get("shape", ())):
            rows: Array = np.arange(int(info["num_classes"]), dtype=info.get("dtype", "int64"))
        else:
            rows = probe.inputs[name]
        conditioning[name] = rows[np.arange(len(seeds)) % len(rows)]
    return Held(sampler, record.sample_shape, seeds, Conditions(conditioning), batch)


def run_freely(engine: Engine, held: Held) -> FloatTrajectories:
    """Let the engine walk from noise to image on its own."""
    steps = len(held.sampler.timesteps)
    states: list[list[Array]] = [[] for _ in range(steps)]
    outputs: list[list[Array]] = [[] for _ in range(steps)]

    def remember(index: int, state: Array, output: Array) -> None:
        states[index].append(state.copy())
        outputs[index].append(output.copy())

    final = generate(
        engine,
        held.sampler,
        shape=held.shape,
        conditions=held.conditions,
        seeds=held.seeds,
        batch=min(held.batch, engine.max_rows or held.batch),
        observe=remember,
    )
    seen = np.stack([np.concatenate(parts) for parts in states])
    predicted = np.stack([_by_branch(parts, held.conditions.branches) for parts in outputs])
    return FloatTrajectories(seen, predicted, held.sampler.timesteps, final)


def _by_branch(parts: Sequence[Array], branches: int) -> Array:
    """Join the predictions of batches ``[branches * n, ...]``: all images of one branch, then of the next."""
    split = [np.split(part, branches) for part in parts]
    return np.concatenate([part[branch] for branch in range(branches) for part in split])


@dataclass(frozen=True)
class FreeRun:
    """How far an engine's own trajectories end from the float model's, and ``by_step`` how they get there."""

    metrics: dict[str, Number]
    image_seed: int
    """Whose image is furthest from float."""
    by_step: list[dict[str, Any]]
    exempt: dict[str, str]
    """Metric -> why it does not apply to this model's states."""


def compare_with_float(
    engine: Engine,
    names: tuple[str, str],
    truth: FloatTrajectories,
    held: Held,
    section: ParitySection,
    evidence: Literal["budget", "single"] = "budget",
) -> tuple[Comparison, list[dict[str, Any]]]:
    """Return the budget comparison of one candidate, and its free-running similarity step by step."""
    free = compare_trajectories(engine, truth, held)
    by_timestep = _teacher_forced(engine, truth, held, section.buckets)
    metrics = {
        "latents_differ": free.metrics["latents_differ"],
        "eps_sqnr_db": _least(by_timestep, "sqnr_db"),
        "eps_cosine": _least(by_timestep, "cosine"),
        **free.metrics,
    }
    worst = {
        "bucket": int(np.argmin([_order(r["sqnr_db"]) for r in by_timestep])),
        "image_seed": free.image_seed,
    }
    comparison = measured(
        evidence,
        *names,
        metrics,
        engine=engine.label,
        worst=worst,
        by_timestep=by_timestep,
        exempt=free.exempt if evidence == "budget" else {},
    )
    return comparison, free.by_step


def describe_comparison(truth: FloatTrajectories) -> str | None:
    """Return in words what PSNR and SSIM are taken of; None for images, which have a range of their own."""
    shape = truth.final.shape[1:]
    if is_image(shape):
        return None
    low, high = value_range(truth.final)
    return (
        f"{'PSNR and SSIM are' if len(shape) == 3 else 'PSNR is'} of the final latents {list(shape)}, not clipped, "
        f"over the float model's own range, {low:.4g} to {high:.4g}."
    )


def compare_trajectories(engine: Engine, truth: FloatTrajectories, held: Held) -> FreeRun:
    """Let the engine walk on its own and compare where it comes by and where it ends."""
    free = run_freely(engine, held)
    by_step: list[dict[str, Any]] = [
        {"timestep": int(t), **_cosines(x, y)}
        for t, x, y in zip(truth.timesteps, truth.states, free.states, strict=True)
    ]
    final = _cosines(truth.final, free.final)
    by_step.append({"timestep": None, **final})
    shape = truth.final.shape[1:]
    limits = None if is_image(shape) else value_range(truth.final)
    psnrs = psnr(truth.final, free.final, limits)
    starts = zip(truth.states[0], free.states[0], strict=True)
    metrics: dict[str, Number] = {
        "latents_differ": float(sum(digest_array(a) != digest_array(b) for a, b in starts)),
        "trajectory_cosine": final["mean"],
        "trajectory_cosine_min": final["min"],
        "image_psnr_db": float(np.mean(psnrs)),
        "image_psnr_db_min": float(np.min(psnrs)),
    }
    exempt = {}
    if len(shape) == 3:
        ssims = ssim(truth.final, free.final, limits)
        metrics |= {"image_ssim": float(np.mean(ssims)), "image_ssim_min": float(np.min(ssims))}
    else:
        exempt["image_ssim"] = f"A state of shape {list(shape)} has no two axes of space"
    return FreeRun(metrics, held.seeds[int(np.argmin(psnrs))], by_step, exempt)


def _teacher_forced(
    engine: Engine, truth: FloatTrajectories, held: Held, count: int
) -> tuple[dict[str, int | Number], ...]:
    """Run the candidate on every state of the float trajectories; compare predictions per timestep bucket."""
    steps, rows = truth.outputs.shape[:2]
    exact = truth.outputs.reshape(steps * rows, *truth.outputs.shape[2:])
    predicted = np.concatenate(list(_predictions(engine, truth, held)))
    timesteps = np.repeat(truth.timesteps, rows)
    buckets = timestep_buckets(timesteps, count)
    noise = by_bucket(sqnr_db, exact, predicted, buckets)
    angle = by_bucket(cosine, exact, predicted, buckets)
    return tuple(
        {
            "bucket": b,
            "timestep_max": int(timesteps[buckets == b].max()),
            "timestep_min": int(timesteps[buckets == b].min()),
            "sqnr_db": finite(noise[b]),
            "cosine": finite(angle[b]),
        }
        for b in range(len(noise))
    )


def _predictions(engine: Engine, truth: FloatTrajectories, held: Held) -> Iterator[Array]:
    """Yield the engine's predictions for every state and branch, step after step, batch by batch.

    Rows are gathered as they are needed: a text embedding may be a thousand times the size of a state.
    """
    steps, rows = truth.outputs.shape[:2]
    images = truth.states.shape[1]
    fixed, fed = held.conditions.feeds(), held.sampler.model_timesteps
    size = min(held.batch, engine.max_rows or held.batch)
    for first in range(0, steps * rows, size):
        step, row = np.divmod(np.arange(first, min(first + size, steps * rows)), rows)
        feeds = {SAMPLE: truth.states[step, row % images], TIMESTEP: fed[step]}
        yield engine.run({**feeds, **{k: v[row] for k, v in fixed.items()}})[engine.outputs[0].name]


def _cosines(truth: Array, free: Array) -> dict[str, Number]:
    """Return mean and least cosine over the rows of two ``[N, ...]`` arrays."""
    values = [cosine(a, b) for a, b in zip(truth, free, strict=True)]
    return {"mean": finite(float(np.mean(values))), "min": finite(float(np.min(values)))}


def _order(value: float | None) -> float:
    return -np.inf if value is None else value


def _least(rows: Sequence[Mapping[str, Number]], key: str) -> float:
    """Return the least value over all buckets, NaN if one was not finite."""
    values = [row[key] for row in rows]
    return math.nan if None in values else float(np.min(np.asarray(values, np.float64)))
