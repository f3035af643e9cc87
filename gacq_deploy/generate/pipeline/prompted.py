"""How does a run directory make images of prompts? The real pipeline, with the engine in its denoiser's place."""

from __future__ import annotations

import time

import numpy as np
import torch

from gacq_deploy.artifact.artifact import CalibrationArtifact, load_artifact
from gacq_deploy.diffusers.denoiser import EngineDenoiser
from gacq_deploy.diffusers.load import looks_of
from gacq_deploy.engines.catalogue import engine_named
from gacq_deploy.errors import ModelError, UsageError
from gacq_deploy.generate.pipeline.call import call_arguments, open_around, run_pipeline
from gacq_deploy.generate.request import GeneratedImages, ImageRequest
from gacq_deploy.generate.sampled import open_engines
from gacq_deploy.models.components import check_components
from gacq_deploy.models.folders import check_pipeline, check_text_library, locate_root, read_pipeline
from gacq_deploy.models.pipelines import OpenPipeline
from gacq_deploy.models.source import Source, find_source
from gacq_deploy.parity.deployable import graph_for
from gacq_deploy.progress import SILENT, Reporter
from gacq_deploy.recipe.sections import ModelSection, Recipe
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.samples.prompts import BUILTIN, draw_prompts
from gacq_deploy.sampling.loop import Sampler, model_sampler
from gacq_deploy.sampling.step_policy import StepPolicy, resolve_policy

_SHORT = {"ddim": "DDIMScheduler", "flow": "FlowMatchEulerDiscreteScheduler"}
"""Samplers of `run` in numpy, and the scheduler that a pipeline takes for them."""
_DECODERS = ("vae", "vqvae", "movq", "vqgan")
"""What the pipelines of diffusers call theirs."""


def make_prompted_images(
    directory: RunDirectory, request: ImageRequest, report: Reporter = SILENT
) -> GeneratedImages:
    """Run a model's own pipeline with the engine as its denoiser; the float denoiser is not loaded.

    Image i starts from ``torch.Generator().manual_seed(seed + i)``, as a user of the pipeline would. A safety checker
    is not run.

    Returns:
        Images in [-1, 1].

    Raises:
        UsageError: something was asked for that the pipeline or the engine does not take, or the pipeline has moved.
        ModelError: the pipeline is not whole, cannot be opened, or fails.
        ArtifactError: recipe, artifact or graphs are missing, stale or altered.
        BackendUnavailable: the engine's package or device is missing, or that of the text encoders.
        EngineError: the engine failed, or images are not finite.
        ResourceError: out of memory.
    """
    recipe = directory.load_recipe().allowing_python(request.allow_python)
    source = _find_pipeline(recipe.model, request.pipeline)
    artifact = load_artifact(directory.artifact)
    sampler, scheduler = _sampler(artifact, recipe, request)
    policy = _policy(artifact, recipe, request, sampler)
    graph = graph_for(directory, request.engine, allow_failed=request.allow_failed)
    config, kind = looks_of(source)
    with (
        open_engines(directory, request, graph, policy) as engine,
        EngineDenoiser(engine, artifact.model, config, kind=kind) as denoiser,
    ):
        opened = open_around(source, denoiser, scheduler if request.scheduler else None, _device(request))
        prompts = _prompts(opened, request, recipe)
        given = call_arguments(opened, request, recipe, engine)
        batch = request.batch or recipe.runtime.batch
        seeds = range(request.seed, request.seed + request.count)
        report.stage("denoise", -(-request.count // batch) * len(sampler.timesteps))
        denoiser.register_forward_hook(lambda *_: report.advance())
        began = time.perf_counter()
        batches = [
            run_pipeline(opened, given, prompts[first : first + batch], seeds[first : first + batch])
            for first in range(0, request.count, batch)
        ]
        seconds = time.perf_counter() - began
        label = engine.label
    return GeneratedImages(
        images=np.concatenate(batches),
        graph=graph.name,
        engine=label,
        seeds=tuple(seeds),
        labels=(),
        timesteps=tuple(int(t) for t in sampler.timesteps),
        sampler=scheduler,
        seconds=seconds,
        policy=policy,
        prompts=tuple(prompts),
        negative_prompt=request.negative_prompt,
        guidance_scale=given.get("guidance_scale"),
    )


def _find_pipeline(section: ModelSection, elsewhere: str | None) -> Source:
    """Find the pipeline and refuse what would fail later, before anything is loaded.

    Raises:
        UsageError: it is not there.
        ModelError: a component that makes images is missing, pickled or incomplete.
        BackendUnavailable: the library of its text encoders is not installed.
    """
    chosen = section
    if elsewhere is not None:
        chosen = section.model_copy(update={"source": elsewhere}).as_read(named_by_file=False)
    try:
        source = find_source(chosen, weights=False)
        if source.pipeline is not None:
            return source
        root = locate_root(chosen, (), weights=True)
    except UsageError as error:
        raise UsageError(
            f"Prompts need the model's pipeline, its text encoders and its decoder. {error.message}",
            f"If it has moved since calibration, pass --pipeline FOLDER. {error.hint}",
        ) from error
    index = read_pipeline(root)
    others = {name: entry for name, entry in index.items() if name != source.component}
    check_text_library(root)
    check_pipeline(root, others)
    check_components(root, others)
    lost = [name for name in _DECODERS if isinstance(others.get(name), list) and not others[name][1]]
    if lost:
        raise ModelError(
            f"{root} has no decoder ({lost[0]} is null): latents cannot become images.",
            "Restore it in the folder and in model_index.json, or pass --pipeline FOLDER.",
        )
    return source


def _sampler(artifact: CalibrationArtifact, recipe: Recipe, request: ImageRequest) -> tuple[Sampler, str]:
    """Return the steps that the pipeline will take, and its scheduler's class: refused here what would fail there."""
    model = artifact.model
    own = str(model.scheduler.get("_class_name", "DDIMScheduler"))
    name = _SHORT.get(request.scheduler or own, request.scheduler or own)
    steps = recipe.runtime.steps if request.steps is None else request.steps
    return model_sampler(model, steps, name=name), name


def _policy(
    artifact: CalibrationArtifact, recipe: Recipe, request: ImageRequest, sampler: Sampler
) -> StepPolicy | None:
    section = request.policy(recipe.runtime.step_policy)
    if not section:
        return None
    return resolve_policy(section, sampler.timesteps, artifact, model_timesteps=sampler.model_timesteps)


def _device(request: ImageRequest) -> str:
    if request.device is not None:
        return request.device
    return "cuda" if engine_named(request.engine).on_gpu and torch.cuda.is_available() else "cpu"


def _prompts(opened: OpenPipeline, request: ImageRequest, recipe: Recipe) -> list[str]:
    """Return one prompt an image, none of a pipeline that takes none."""
    if not opened.takes("prompt"):
        if request.prompts:
            raise UsageError(f"{opened.name} takes no prompts.", "Leave --prompt out.")
        return []
    if not request.prompts:
        return draw_prompts(
            recipe.samples.prompts or BUILTIN, recipe.samples.seed, request.seed, request.count
        )
    if any(not prompt.strip() for prompt in request.prompts):
        raise UsageError("A prompt is empty.", "Say what the image shows.")
    return [request.prompts[i % len(request.prompts)] for i in range(request.count)]
