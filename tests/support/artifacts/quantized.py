"""A tiny fake-quantized model by nearest rounding, its samples, and a calibration of it that is about to polish."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gacq_deploy.calibration.planning import make_plan
from gacq_deploy.calibration.session import Session
from gacq_deploy.calibration.weighting.weighting import Split, Weighting
from gacq_deploy.models.base import Denoiser
from gacq_deploy.models.structure.graph import trace_model
from gacq_deploy.models.trajectories.collect import DrawnTrajectories
from gacq_deploy.models.trajectories.drawn import collect_samples
from gacq_deploy.progress import SILENT, Reporter
from gacq_deploy.quant.layers import QuantizedLayer
from gacq_deploy.quant.prepare import estimate_activation_scales, insert_quantizers
from gacq_deploy.recipe.load import load_recipe
from gacq_deploy.recipe.sections import Recipe
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.samples.calibration_set import CalibrationSet, load_samples
from tests.support.models.tiny import FLOAT_LAYERS, tiny_denoiser

W4A8 = (
    "quantization.rules=[{match: '*', bits: 8}, {match: '*', role: weight, bits: 4},"
    + ",".join(f"{{match: '*{word}*', ignore: true}}" for word in FLOAT_LAYERS)
    + "]"
)
TINY = (
    W4A8,
    "samples.trajectories=6",
    "samples.steps=5",
    "calibration.threads=1",
    "calibration.reconstruction.iterations=3",
    "calibration.reconstruction.batch=8",
    "calibration.weighting.mode=uniform",
    "calibration.weighting.iterations=1",
    "calibration.weighting.polish_iterations=2",
    "calibration.weighting.batch=8",
    "calibration.weighting.validation_batch=1",
    "calibration.polish.steps=6",
    "calibration.polish.batch=8",
    "calibration.polish.save_every=2",
    "parity.probe={trajectories: 2, local_samples: 2}",
)


def tiny_settings(*more: str) -> Recipe:
    """Return a W4A8 recipe with numbers so small that a run on the tiny model takes a second or two."""
    return load_recipe("fashion-w4a8", [*TINY, *more])


def answer(denoiser: Denoiser, batch: int = 4, seed: int = 0) -> Tensor:
    """Return what the model answers to seeded inputs."""
    inputs = denoiser.example_inputs(batch, seed)
    sample, timestep = inputs.pop("sample"), inputs.pop("timestep")
    with torch.no_grad():
        return denoiser(sample, timestep, inputs)


def quantized_tiny(
    recipe: Recipe | None = None, **changes: Any
) -> tuple[Denoiser, dict[str, QuantizedLayer]]:
    """Return the tiny denoiser with fake-quantized layers, nearest rounding."""
    denoiser = tiny_denoiser(**changes)
    plan = make_plan(recipe or tiny_settings(), trace_model(denoiser))

    def run() -> Iterator[object]:
        yield answer(denoiser, batch=8)

    scales = estimate_activation_scales(denoiser.module, plan, run)
    return denoiser, insert_quantizers(denoiser.module, plan, scales)


def tiny_samples(folder: Path, recipe: Recipe | None = None) -> CalibrationSet:
    """Return states of the tiny model's own float trajectories."""
    path = folder / "samples.safetensors"
    collect_samples(tiny_denoiser(), (recipe or tiny_settings()).samples, path)
    return load_samples(path)


@dataclass(frozen=True)
class Bench:
    """A calibration whose blocks are nearest rounded: all that a polish needs."""

    session: Session
    layers: dict[str, QuantizedLayer]


def tiny_bench(
    samples: CalibrationSet, *more: str, report: Reporter = SILENT, denoiser: Denoiser | None = None
) -> Bench:
    """Return a fresh model with a session over ``samples``, under :func:`tiny_settings` and ``more``."""
    recipe = tiny_settings(*more)
    denoiser = denoiser or tiny_denoiser()
    graph = trace_model(denoiser)
    plan = make_plan(recipe, graph)

    def run() -> Iterator[object]:
        yield answer(denoiser, batch=8)

    scales = estimate_activation_scales(denoiser.module, plan, run)
    layers = insert_quantizers(denoiser.module, plan, scales)
    split = Split(samples, recipe.calibration.weighting.groups)
    weighting, memory_mb = Weighting(recipe.calibration, split), recipe.calibration.memory_mb
    trajectories = DrawnTrajectories(denoiser, recipe, RunDirectory(Path("nowhere")))
    return Bench(
        Session(recipe, denoiser, graph, plan, split, weighting, trajectories, report, memory_mb), layers
    )
