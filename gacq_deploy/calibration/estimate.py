"""What would calibration do, and what would it cost? Answered before anything runs."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from gacq_deploy.calibration.calibrate import check_steps, make_plan
from gacq_deploy.calibration.replay import cache_bytes, chunk_size
from gacq_deploy.calibration.threads import limited_threads
from gacq_deploy.models.base import Denoiser
from gacq_deploy.models.graph import ModelGraph, trace_model
from gacq_deploy.models.source import load_denoiser
from gacq_deploy.models.trajectory import validation_trajectories
from gacq_deploy.recipe import Recipe
from gacq_deploy.spec import PlannedSite, QuantPlan

_STEP_COST = 3.4
"""One reconstruction step in forward passes of the same batch: forward, backward, rounding, Adam; measured on the
demo UNet, where the small blocks' fixed costs count."""
_BASE_MB = 500
"""torch and diffusers once imported."""


@dataclass(frozen=True)
class CalibrationEstimate:
    """The plan with its costs: seconds on this machine, megabytes of memory and disk."""

    family: str
    parameters: int
    sites: tuple[dict[str, object], ...]
    quantized_modules: int
    float_modules: int
    blocks: tuple[str, ...]
    samples: int
    validation_samples: int
    seconds: float
    memory_mb: float
    disk_mb: float


def estimate_calibration(recipe: Recipe) -> CalibrationEstimate:
    """Load and trace the model, resolve the rules, time one forward pass; write nothing.

    Raises:
        GacqError: whatever :func:`gacq_deploy.calibration.calibrate.calibrate` would raise before its first sample.
    """
    with limited_threads(recipe.calibration.threads):
        return _estimate(recipe)


def _estimate(recipe: Recipe) -> CalibrationEstimate:
    denoiser = load_denoiser(recipe.model)
    graph = trace_model(denoiser)
    plan = make_plan(recipe, graph)
    check_steps(recipe, denoiser)
    kept = len(range(0, recipe.samples.steps, recipe.samples.keep_every))
    held = int(validation_trajectories(recipe.samples).sum()) * kept
    total = recipe.samples.trajectories * kept
    layers = {s.module for s in graph.sites}
    return CalibrationEstimate(
        family=denoiser.family.name,
        parameters=sum(p.numel() for p in denoiser.module.parameters()),
        sites=tuple(_describe(e) for e in plan),
        quantized_modules=len(plan.modules),
        float_modules=len(layers) - len(plan.modules),
        blocks=tuple(b.name for b in graph.blocks if any(plan.get(s) for s in b.sites)),
        samples=total - held,
        validation_samples=held,
        seconds=_seconds(recipe, denoiser, graph, total - held),
        memory_mb=_memory_mb(recipe, denoiser, graph, total),
        disk_mb=_disk_mb(recipe, denoiser, graph, plan, total, total - held),
    )


def _describe(entry: PlannedSite) -> dict[str, object]:
    return {"site": str(entry.site), "bits": entry.spec.bits, "range": entry.range_method, "tie": entry.tie}


def _forward_seconds(denoiser: Denoiser, batch: int) -> float:
    """Return the time of one forward pass: the faster of two after a warm-up."""
    inputs = denoiser.example_inputs(batch)
    sample, timestep = inputs.pop("sample"), inputs.pop("timestep")
    times = []
    with torch.no_grad():
        for _ in range(3):
            started = time.perf_counter()
            denoiser(sample, timestep, inputs)
            times.append(time.perf_counter() - started)
    return min(times[1:])


def _seconds(recipe: Recipe, denoiser: Denoiser, graph: ModelGraph, samples: int) -> float:
    settings = recipe.calibration.reconstruction
    probe = recipe.parity.probe.trajectories * recipe.samples.steps
    collect = (recipe.samples.trajectories * recipe.samples.steps + probe) / recipe.samples.batch
    # ranges read the set twice, replay carries two streams, each block's loss is taken before and after, the probe has
    # three passes
    passes = (6 * samples + 3 * probe) / chunk_size(graph, recipe.calibration.memory_mb)
    return (
        collect * _forward_seconds(denoiser, recipe.samples.batch)
        + passes * _forward_seconds(denoiser, chunk_size(graph, recipe.calibration.memory_mb))
        + settings.iterations * _STEP_COST * _forward_seconds(denoiser, settings.batch)
    )


def _memory_mb(recipe: Recipe, denoiser: Denoiser, graph: ModelGraph, samples: int) -> float:
    weights = sum(p.numel() * p.element_size() for p in denoiser.module.parameters())
    chunk = chunk_size(graph, recipe.calibration.memory_mb)
    batch = max(chunk, recipe.calibration.reconstruction.batch)
    state = 2 * 4 * torch.Size(denoiser.record.sample_shape).numel()
    return _BASE_MB + (1.5 * weights + 8 * batch * graph.bytes_per_sample + 2 * samples * state) / 2**20


def _disk_mb(
    recipe: Recipe, denoiser: Denoiser, graph: ModelGraph, plan: QuantPlan, total: int, training: int
) -> float:
    state = 2 * 4 * torch.Size(denoiser.record.sample_shape).numel()
    codes = sum(denoiser.module.get_submodule(m).get_parameter("weight").numel() for m in plan.modules)
    local = recipe.parity.probe.local_samples * sum(
        2 * sum(t.bytes for t in b.inputs.values()) + 2 * b.output.bytes for b in graph.blocks
    )
    return (total * state + cache_bytes(graph, training) + 2 * codes + 2 * local) / 2**20
