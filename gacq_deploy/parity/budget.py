"""What will the user see? The candidate beside the float model: single steps, whole trajectories, images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gacq_deploy.artifact import ModelRecord, Probe
from gacq_deploy.backends.base import Engine, Feeds
from gacq_deploy.backends.function import FunctionEngine
from gacq_deploy.images import psnr, ssim
from gacq_deploy.parity.difference import run_in_batches
from gacq_deploy.parity.metrics import by_bucket, cosine, sqnr_db
from gacq_deploy.parity.report import Edge, Number, finite, measured
from gacq_deploy.recipe import ParitySection
from gacq_deploy.runtime import DdimSampler, generate
from gacq_deploy.samples import timestep_buckets
from gacq_deploy.storage import Array, digest_array


@dataclass(frozen=True)
class Trajectories:
    """Free-running trajectories of N images over S steps, noisiest first.

    ``states`` [S, N, C, H, W] as the network saw them, ``outputs`` [S, N, C, H, W] what it answered,
    ``timesteps`` [S], ``final`` [N, C, H, W].
    """

    states: NDArray[np.float32]
    outputs: NDArray[np.float32]
    timesteps: NDArray[np.int64]
    final: NDArray[np.float32]


@dataclass(frozen=True)
class Held:
    """The held-out start of every trajectory: seeds, and conditioning name -> [N, ...]."""

    sampler: DdimSampler
    shape: tuple[int, ...]
    seeds: tuple[int, ...]
    conditioning: Mapping[str, Array]
    batch: int


def hold_out(record: ModelRecord, probe: Probe, section: ParitySection, batch: int) -> Held:
    """Choose seeds, and conditioning in turn: every real class, or what the probe holds."""
    seeds = tuple(range(section.seed, section.seed + section.images))
    conditioning = {}
    for name, info in record.conditioning.items():
        if info.get("num_classes") and not tuple(info.get("shape", ())):
            rows: Array = np.arange(int(info["num_classes"]), dtype=info.get("dtype", "int64"))
        else:
            rows = probe.inputs[name]
        conditioning[name] = rows[np.arange(len(seeds)) % len(rows)]
    sampler = DdimSampler.from_config(record.scheduler, section.steps)
    return Held(sampler, record.sample_shape, seeds, conditioning, batch)


def run_freely(engine: Engine, held: Held) -> Trajectories:
    """Let the engine walk from noise to image on its own."""
    calls: list[tuple[Array, int, Array]] = []

    def remember(feeds: Feeds) -> dict[str, Array]:
        results = engine.run(feeds)
        calls.append(
            (feeds["sample"].copy(), int(feeds["timestep"][0]), results[engine.outputs[0].name].copy())
        )
        return results

    final = generate(
        FunctionEngine(remember, engine.inputs, engine.outputs, engine.label),
        held.sampler,
        shape=held.shape,
        conditioning=held.conditioning,
        seeds=held.seeds,
        batch=min(held.batch, engine.max_rows or held.batch),
    )
    steps = len(held.sampler.timesteps)
    batches = [calls[i : i + steps] for i in range(0, len(calls), steps)]
    count = len(held.seeds)
    # a last batch of one row is run as two
    states = np.concatenate([np.stack([c[0] for c in batch]) for batch in batches], axis=1)[:, :count]
    outputs = np.concatenate([np.stack([c[2] for c in batch]) for batch in batches], axis=1)[:, :count]
    timesteps = np.array([c[1] for c in calls[:steps]], np.int64)
    return Trajectories(states, outputs, timesteps, final)


@dataclass(frozen=True)
class FreeRun:
    """How far an engine's own trajectories end from the float model's, and ``by_step`` how they get there."""

    metrics: dict[str, Number]
    image_seed: int
    """Whose image is furthest from float."""
    by_step: list[dict[str, Any]]


def compare_with_float(
    engine: Engine,
    names: tuple[str, str],
    truth: Trajectories,
    held: Held,
    section: ParitySection,
    evidence: Literal["budget", "single"] = "budget",
) -> tuple[Edge, list[dict[str, Any]]]:
    """Return the budget edge of one candidate, and its free-running similarity step by step."""
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
    edge = measured(evidence, *names, metrics, engine=engine.label, worst=worst, by_timestep=by_timestep)
    return edge, free.by_step


def compare_trajectories(engine: Engine, truth: Trajectories, held: Held) -> FreeRun:
    """Let the engine walk on its own and compare where it comes by and where it ends."""
    free = run_freely(engine, held)
    by_step: list[dict[str, Any]] = [
        {"timestep": int(t), **_cosines(x, y)}
        for t, x, y in zip(truth.timesteps, truth.states, free.states, strict=True)
    ]
    final = _cosines(truth.final, free.final)
    by_step.append({"timestep": None, **final})
    psnrs, ssims = psnr(truth.final, free.final), ssim(truth.final, free.final)
    starts = zip(truth.states[0], free.states[0], strict=True)
    metrics: dict[str, Number] = {
        "latents_differ": float(sum(digest_array(a) != digest_array(b) for a, b in starts)),
        "trajectory_cosine": final["mean"],
        "trajectory_cosine_min": final["min"],
        "image_psnr_db": float(np.mean(psnrs)),
        "image_psnr_db_min": float(np.min(psnrs)),
        "image_ssim": float(np.mean(ssims)),
        "image_ssim_min": float(np.min(ssims)),
    }
    return FreeRun(metrics, held.seeds[int(np.argmin(psnrs))], by_step)


def _teacher_forced(
    engine: Engine, truth: Trajectories, held: Held, count: int
) -> tuple[dict[str, int | Number], ...]:
    """Run the candidate on every state of the float trajectories; compare answers per timestep bucket."""
    steps, rows = truth.states.shape[:2]
    inputs = {
        "sample": truth.states.reshape(steps * rows, *truth.states.shape[2:]),
        "timestep": np.repeat(truth.timesteps, rows),
        **{k: np.tile(v, (steps, *[1] * (v.ndim - 1))) for k, v in held.conditioning.items()},
    }
    answers = run_in_batches(engine, inputs, held.batch)
    exact = truth.outputs.reshape(answers.shape)
    buckets = timestep_buckets(inputs["timestep"], count)
    noise, angle = by_bucket(sqnr_db, exact, answers, buckets), by_bucket(cosine, exact, answers, buckets)
    return tuple(
        {
            "bucket": b,
            "timestep_max": int(inputs["timestep"][buckets == b].max()),
            "timestep_min": int(inputs["timestep"][buckets == b].min()),
            "sqnr_db": finite(noise[b]),
            "cosine": finite(angle[b]),
        }
        for b in range(len(noise))
    )


def _cosines(truth: Array, free: Array) -> dict[str, Number]:
    """Return mean and least cosine over the rows of two ``[N, ...]`` arrays."""
    values = [cosine(a, b) for a, b in zip(truth, free, strict=True)]
    return {"mean": finite(float(np.mean(values))), "min": finite(float(np.min(values)))}


def _order(value: float | None) -> float:
    return -np.inf if value is None else value


def _least(rows: Sequence[Mapping[str, Number]], key: str) -> float:
    """Return the least value over all buckets, NaN if one was not finite."""
    return float(np.min([np.nan if r[key] is None else r[key] for r in rows]))
