"""How does a run directory make images? A verified graph that suits the engine, the model's sampler, seeds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gacq_deploy.artifact import load_artifact
from gacq_deploy.backends import BACKENDS, open_engine
from gacq_deploy.ddim import check_seeds
from gacq_deploy.errors import ArtifactError, UsageError
from gacq_deploy.export.record import CANONICAL, CPU, FLOAT, load_export
from gacq_deploy.progress import SILENT, Reporter
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.runtime import build_conditioning, generate, open_sampler

FLOAT_ENGINE = "float"
GRAPHS: dict[str, tuple[str, ...]] = {
    "ort-cpu": (CPU, CANONICAL),
    "ort-cuda": (CANONICAL,),
    "openvino": (CANONICAL,),
    FLOAT_ENGINE: (FLOAT,),
}
"""Engine -> exported graphs it takes, the best one first."""


@dataclass(frozen=True)
class ImageRequest:
    """Which images, made how; None takes the recipe's value."""

    count: int
    seed: int = 0
    """Image i starts from seed + i."""
    engine: str = "ort-cpu"
    labels: Sequence[int] | None = None
    """Class labels, repeated in turn; None takes every class in turn."""
    steps: int | None = None
    batch: int | None = None
    scheduler: str = "ddim"
    threads: int = 0


@dataclass(frozen=True)
class GeneratedImages:
    """``images`` [N, C, H, W] float32 in the model's own range, and how they were made."""

    images: NDArray[np.float32]
    graph: str
    engine: str
    seeds: tuple[int, ...]
    labels: tuple[int, ...]
    timesteps: tuple[int, ...]
    seconds: float


def graph_for(directory: RunDirectory, engine: str) -> Path:
    """Return the exported graph that ``engine`` runs best, after every digest was checked.

    Raises:
        UsageError: unknown engine.
        ArtifactError: not exported, stale, altered, or the graph this engine needs was not exported.
    """
    if engine not in GRAPHS:
        raise UsageError(f"Engine '{engine}' is not known.", f"Choose one of: {', '.join(GRAPHS)}.")
    record = load_export(directory)
    for name in GRAPHS[engine]:
        if name in record.files:
            return directory.onnx / name
    raise ArtifactError(
        f"Engine '{engine}' needs {' or '.join(GRAPHS[engine])}, exported were {', '.join(record.graphs)}.",
        f"Run `gacq-deploy export --onnx {directory.root} --target both`.",
    )


def make_images(directory: RunDirectory, request: ImageRequest, report: Reporter = SILENT) -> GeneratedImages:
    """Generate images; everything that can be wrong with the request is said before the first step.

    Raises:
        UsageError: a count, seed, label, engine, scheduler or number of steps out of range.
        ArtifactError: recipe, artifact or graphs are missing, stale or altered.
        BackendUnavailable: the engine's package, provider or device is missing.
        EngineError: the engine failed, or its output is not finite.
    """
    if request.count < 1:
        raise UsageError(f"{request.count} images were asked for.", "Ask for at least one.")
    check_seeds((request.seed, request.seed + request.count - 1))
    recipe = directory.load_recipe()
    model = load_artifact(directory.artifact).model
    conditioning = build_conditioning(model, request.count, request.labels)
    sampler = open_sampler(
        model.scheduler,
        recipe.runtime.steps if request.steps is None else request.steps,
        name=request.scheduler,
        eta=recipe.runtime.eta if request.scheduler == "ddim" else 0.0,
    )
    graph = graph_for(directory, request.engine)
    seeds = tuple(range(request.seed, request.seed + request.count))
    backend = request.engine if request.engine in BACKENDS else "ort-cpu"
    with open_engine(backend, graph, threads=request.threads) as engine:
        began = time.perf_counter()
        images = generate(
            engine,
            sampler,
            shape=model.sample_shape,
            conditioning=conditioning,
            seeds=seeds,
            batch=request.batch or recipe.runtime.batch,
            report=report,
        )
        seconds = time.perf_counter() - began
        label = engine.label
    return GeneratedImages(
        images=images,
        graph=graph.name,
        engine=label,
        seeds=seeds,
        labels=tuple(int(x) for x in conditioning.get("class_labels", ())),
        timesteps=tuple(int(t) for t in sampler.timesteps),
        seconds=seconds,
    )
