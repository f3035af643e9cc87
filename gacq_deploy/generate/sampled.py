"""How does a run directory make images? A verified graph that suits the engine, the model's sampler, seeds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gacq_deploy.artifact.artifact import load_artifact
from gacq_deploy.backends.base import Engine
from gacq_deploy.backends.mixed_steps import SteppedEngine
from gacq_deploy.build_trt.open import is_compiled, locate_engine, open_model
from gacq_deploy.engines.catalogue import FLOAT, engine_named
from gacq_deploy.generate.request import GeneratedImages, ImageRequest
from gacq_deploy.parity.deployable import graph_for
from gacq_deploy.progress import SILENT, Reporter
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.samples.conditioning import Conditions
from gacq_deploy.sampling.loop import build_conditioning, generate, model_sampler, native_sampler
from gacq_deploy.sampling.step_policy import StepPolicy, resolve_policy


def make_sampled_images(
    directory: RunDirectory, request: ImageRequest, report: Reporter = SILENT
) -> GeneratedImages:
    """Generate images; everything that can be wrong with the request is said before the first step.

    Raises:
        UsageError: a count, seed, label, engine, scheduler, number of steps or of float steps out of range.
        ArtifactError: recipe, artifact or graphs are missing, stale or altered.
        BackendUnavailable: the engine's package, provider or device is missing.
        EngineError: the engine failed, or its output is not finite.
    """
    request.check_count()
    recipe = directory.load_recipe()
    artifact = load_artifact(directory.artifact)
    model = artifact.model
    conditioning = build_conditioning(model, request.count, request.labels)
    name = native_sampler(model.scheduler) if request.scheduler is None else request.scheduler
    steps = recipe.runtime.steps if request.steps is None else request.steps
    eta = recipe.runtime.eta if name == "ddim" else 0.0  # of no other sampler
    sampler = model_sampler(model, steps, name=request.scheduler, eta=eta)
    policy: StepPolicy | None = None
    if asked := request.policy(recipe.runtime.step_policy):
        model_timesteps = sampler.model_timesteps
        policy = resolve_policy(asked, sampler.timesteps, artifact, model_timesteps=model_timesteps)
    graph = graph_for(directory, request.engine, allow_failed=request.allow_failed)
    seeds = tuple(range(request.seed, request.seed + request.count))
    batch = request.batch or recipe.runtime.batch
    with open_engines(directory, request, graph, policy) as engine:
        began = time.perf_counter()
        images = generate(
            engine,
            sampler,
            shape=model.sample_shape,
            conditions=Conditions(conditioning),
            seeds=seeds,
            batch=min(batch, engine.max_rows or batch),
            report=report,
        )
        seconds = time.perf_counter() - began
        label = engine.label
    return GeneratedImages(
        images=images,
        graph=graph.name,
        engine=label,
        seeds=seeds,
        labels=tuple(map(int, conditioning.get("class_labels", ()))),
        timesteps=tuple(map(int, sampler.timesteps)),
        sampler=name,
        seconds=seconds,
        policy=policy,
    )


@contextmanager
def open_engines(
    directory: RunDirectory, request: ImageRequest, graph: Path, policy: StepPolicy | None
) -> Iterator[Engine]:
    """Open the graph, beside the float one in the same kind of engine where some steps run in float.

    Raises:
        ArtifactError: the float graph's engine is missing or stale.
        BackendUnavailable: the engine's package, provider or device is missing.
        EngineError, ResourceError: it does not load.
    """
    backend = engine_named(request.engine).runner
    options: dict[str, Any] = {"threads": request.threads, "allow_host_code": request.allow_host_code}
    with open_model(backend, graph, **options) as engine:
        if policy is None:
            yield engine
            return
        baseline = (
            locate_engine(directory, backend, graph=FLOAT).path
            if is_compiled(backend)
            else directory.float_onnx
        )
        with (
            open_model(backend, baseline, **options) as exact,
            SteppedEngine(engine, exact, policy.choose, share=policy.describe()) as mixed,
        ):
            yield mixed
