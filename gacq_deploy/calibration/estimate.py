"""What would calibration do, and what would it cost? Answered before anything runs."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from gacq_deploy.calibration.calibrate import check_blocks, check_steps, make_plan
from gacq_deploy.calibration.collecting import find_model, record_denoiser
from gacq_deploy.calibration.objective import TRAJECTORIES
from gacq_deploy.calibration.replay import block_bytes, cache_bytes, chunk_size, second_order_bytes
from gacq_deploy.calibration.smoothing import SEARCHED_STATES
from gacq_deploy.calibration.threads import limited_threads
from gacq_deploy.learning import WeightedStage
from gacq_deploy.models.base import Denoiser
from gacq_deploy.models.graph import ModelGraph, trace_model
from gacq_deploy.models.trajectory import validation_trajectories
from gacq_deploy.recipe import Recipe
from gacq_deploy.spec import PlannedSite, QuantPlan

_STEP_COST = 3.4
"""One reconstruction step in forward passes of the same batch: forward, backward, rounding, Adam; measured on the
demo UNet, where the small blocks' fixed costs count."""
_META_STEPS = 18
"""One meta iteration in training steps of its batch; measured on the demo UNets: 9 on the larger, 18 on the smaller."""
_POLISH_MEMORY = 13
"""What a polish step holds of a sample, in bytes of all blocks' inputs and outputs; measured on the demo UNets."""
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
    unused_modules: tuple[str, ...]
    """Layers that run although nothing uses their result: they stay float."""
    blocks: tuple[str, ...]
    samples: int
    validation_samples: int
    weights: str
    """Mode of the sample weights, and the stages that learn or take them."""
    polish: str
    """Steps of the polish, and what it trains."""
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
    denoiser = record_denoiser(find_model(recipe), recipe)
    graph = trace_model(denoiser)
    plan = make_plan(recipe, graph)
    check_blocks(plan, denoiser.module)
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
        unused_modules=tuple(sorted(graph.unused)),
        blocks=tuple(b.name for b in graph.blocks if any(plan.get(s) for s in b.sites)),
        samples=total - held,
        validation_samples=held,
        weights=_weights(recipe),
        polish=_polish(recipe),
        seconds=_seconds(recipe, denoiser, graph, total - held, held),
        memory_mb=_memory_mb(recipe, denoiser, graph, total),
        disk_mb=_disk_mb(recipe, denoiser, graph, plan, total),
    )


def _weights(recipe: Recipe) -> str:
    section = recipe.calibration.weighting
    if section.mode == "uniform" or not section.stages:
        return "uniform"
    return f"{section.mode}, in {' and '.join(section.stages)}"


def _polish(recipe: Recipe) -> str:
    section = recipe.calibration.polish
    if section.steps == 0:
        return "none"
    return f"{section.steps} steps, {', '.join(section.parameters)}".replace("_", " ")


def _describe(entry: PlannedSite) -> dict[str, object]:
    return {
        "site": str(entry.site),
        "bits": entry.spec.bits,
        **({} if entry.spec.block is None else {"block": entry.spec.block}),
        "range": entry.range_method,
        "tie": entry.tie,
    }


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


def _seconds(recipe: Recipe, denoiser: Denoiser, graph: ModelGraph, training: int, held: int) -> float:
    """Return the time of all passes over the samples, and of all steps on mini-batches."""
    chunk = chunk_size(graph, recipe.calibration.memory_mb)
    probe = recipe.parity.probe.trajectories * recipe.samples.steps
    # a trajectory's steps run in turn: a last, smaller batch costs a pass as well
    collect = recipe.samples.steps * -(-recipe.samples.trajectories // recipe.samples.batch)
    passes = (_rows_passed(recipe, training, held) + 4 * probe) / chunk
    return (
        collect * _forward_seconds(denoiser, recipe.samples.batch)
        + passes * _forward_seconds(denoiser, chunk)
        + sum(
            steps * _STEP_COST * _forward_seconds(denoiser, min(batch, training))
            for steps, batch in _steps(recipe)
            if steps > 0
        )
        + _gain_passes(recipe) * _forward_seconds(denoiser, TRAJECTORIES)
    )


def _rows_passed(recipe: Recipe, training: int, held: int) -> float:
    """Return how many rows the whole model sees beside the steps, in forward passes of a row."""
    polished = recipe.calibration.polish.steps > 0
    # ranges read the set twice, replay carries two streams, each block's loss is taken before and after learning
    blocks = 2 * training + 2 * (training + held) + 2 * training
    smoothing = recipe.quantization.smoothing
    if smoothing is not None:  # it reads the set once, the search some of it again
        blocks += training + (min(training, SEARCHED_STATES) if smoothing.alpha == "search" else 0)
    told = (2 + polished) * (held or training)
    # gradients of the groups before and after every block and the polish
    cosines = 2 * (1 + polished) * _STEP_COST * held
    # the losses before and after; where weights are learned, how every sample's gradient lies
    learned = polished and _learns(recipe, "polish")
    return blocks + told + cosines + polished * 2 * training + learned * _STEP_COST * training


def _steps(recipe: Recipe) -> tuple[tuple[int, int], ...]:
    """Return (training steps of the whole model, their batch) of every kind; meta iterations count as many."""
    settings = recipe.calibration
    weighting = settings.weighting
    # what a stage tries out before its first meta iteration costs about one
    meta = (1 + weighting.iterations) * _learns(recipe, "reconstruction")
    if settings.polish.steps > 0:
        meta += (1 + weighting.polish_iterations) * _learns(recipe, "polish")
    return (
        (settings.reconstruction.iterations, settings.reconstruction.batch),
        (settings.polish.steps, settings.polish.batch),
        (_META_STEPS * meta, weighting.batch),
    )


def _learns(recipe: Recipe, stage: WeightedStage) -> bool:
    section = recipe.calibration.weighting
    return section.mode not in ("uniform", "relative") and stage in section.stages


def _gain_passes(recipe: Recipe) -> float:
    """Return the passes that measure what each step's error does to the image: to the end from every step."""
    settings, steps = recipe.calibration, recipe.samples.steps
    if settings.objective != "images" or settings.weighting.mode == "uniform" or settings.polish.steps == 0:
        return 0
    return 3 * steps + steps * (steps - 1) / 2


def _memory_mb(recipe: Recipe, denoiser: Denoiser, graph: ModelGraph, samples: int) -> float:
    settings = recipe.calibration
    weights = sum(p.numel() * p.element_size() for p in denoiser.module.parameters())
    chunk = chunk_size(graph, settings.memory_mb)
    held = [max(chunk, settings.reconstruction.batch) * block_bytes(graph)]
    if settings.polish.steps > 0:
        held.append(_POLISH_MEMORY * min(settings.polish.batch, chunk) * graph.bytes_of_all_blocks)
    if settings.polish.steps > 0 and _learns(recipe, "polish"):
        # a meta iteration's batch, and how the gradients of one chunk lie
        held.append(max(settings.weighting.batch, min(chunk, samples)) * second_order_bytes(graph))
    state = 2 * 4 * torch.Size(denoiser.record.sample_shape).numel()
    return _BASE_MB + (1.5 * weights + max(held) + 2 * samples * state) / 2**20


def _disk_mb(recipe: Recipe, denoiser: Denoiser, graph: ModelGraph, plan: QuantPlan, total: int) -> float:
    state = 2 * 4 * torch.Size(denoiser.record.sample_shape).numel()
    codes = sum(denoiser.module.get_submodule(m).get_parameter("weight").numel() for m in plan.modules)
    local = recipe.parity.probe.local_samples * 2 * graph.bytes_of_all_blocks
    return (total * state + cache_bytes(graph, total) + 2 * codes + 2 * local) / 2**20
