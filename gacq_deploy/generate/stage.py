"""How does a run directory make images? As its model was calibrated: by its sampler, or inside its own pipeline."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from gacq_deploy.artifact.artifact import load_model_record
from gacq_deploy.engines.attributes import import_attribute
from gacq_deploy.engines.catalogue import engine_named
from gacq_deploy.errors import GacqError, ResourceError, UsageError
from gacq_deploy.generate.request import GeneratedImages, ImageRequest
from gacq_deploy.generate.sampled import make_sampled_images
from gacq_deploy.generate.size import check_size
from gacq_deploy.models.decoders import find_decoder
from gacq_deploy.origin.check import require_origin
from gacq_deploy.progress import SILENT, Reporter
from gacq_deploy.run_directory import AnyRun, RunDirectory, as_run
from gacq_deploy.sampling.scheduler_names import check_scheduler_name
from gacq_deploy.spec import Float32
from gacq_deploy.storage.room import memory_shortage

_BYTES = 2 * 4
"""Of a value of an image, which is copied once into the sheet."""
_PIPELINE = "gacq_deploy.generate.pipeline"
"""Imported by name and when needed: it takes PyTorch, without which all other models are sampled."""
_STEERS = ("prompts", "negative_prompt", "guidance_scale", "width", "height", "device")
"""What only the pipeline of a text-to-image model takes."""


def make_images(directory: AnyRun, request: ImageRequest, report: Reporter = SILENT) -> GeneratedImages:
    """Generate images with an exported graph or a compiled engine.

    A model with prompts runs inside its own pipeline, as calibration found it. Any other is sampled without PyTorch,
    and its latents are decoded by the pipeline's decoder.

    Returns:
        Images ``[N, C, H, W]`` float32 in [-1, 1].

    Raises:
        UsageError: a count, seed, label, engine, scheduler, number of steps or of float steps out of range, or
            something that the model does not take.
        ArtifactError: recipe, artifact or graphs are missing, stale or altered, or not signed by a trusted key.
        GateError: the engine failed parity on this machine.
        ModelError: the pipeline is not whole, cannot be opened, or fails.
        BackendUnavailable: the engine's package, provider or device is missing, or what the pipeline or a signature
            needs.
        EngineError: the engine failed, or its output is not finite.
        ResourceError: out of memory.
    """
    run = as_run(directory)
    run.require()
    request.check_count()
    require_origin(run, request.trusted_keys)
    record = load_model_record(run.artifact)
    _check_memory(record.sample_shape, request.count)
    if record.call is not None:
        _check_prompted(request)
        _check_size(run, record.sample_shape, request)
        make: Callable[[RunDirectory, ImageRequest, Reporter], GeneratedImages] = import_attribute(
            f"{_PIPELINE}.prompted:make_prompted_images",
            what="A model with prompts",
            hint="pip install 'gacq-deploy[calibrate,text]'",
        )
        return make(run, request, report)
    _refuse_prompts(request, record.family)
    section = run.load_recipe().model
    if request.pipeline is not None:
        section = section.model_copy(update={"source": request.pipeline})
    decoder = find_decoder(section, record.sample_shape)
    if decoder is None:
        return make_sampled_images(run, request, report)
    decode: Callable[[Path, Float32], Float32] = import_attribute(
        f"{_PIPELINE}.decode:decode_latents",
        what="A model of latents",
        hint="pip install 'gacq-deploy[calibrate]'",
    )
    made = make_sampled_images(run, request, report)
    return replace(made, images=decode(decoder, made.images))


def _check_memory(shape: tuple[int, ...], count: int) -> None:
    """Refuse more images than memory holds: all of them are kept until they are written together.

    Raises:
        ResourceError: the system has less.
    """
    short = memory_shortage(
        count * math.prod(shape) * _BYTES, "all of them are kept until they are written together."
    )
    if short is not None:
        raise ResourceError(
            f"{count} images of {[*shape]}: {short}", "Lower -n; --seed goes on where another run ended."
        )


def _check_prompted(request: ImageRequest) -> None:
    """Refuse what needs no pipeline to be refused: its imports take seconds."""
    if request.labels is not None:
        raise UsageError(
            "The model is conditioned on prompts and takes no class labels.",
            "Pass --prompt TEXT, not --class.",
        )
    engine_named(request.engine)
    check_scheduler_name(request.scheduler)


def _check_size(run: RunDirectory, shape: tuple[int, ...], request: ImageRequest) -> None:
    """Refuse a size that is not the graph's, where the pipeline's folder tells what its decoder makes of a latent."""
    recipe = run.load_recipe()
    if recipe.export.dynamic_resolution or (request.width, request.height) == (None, None):
        return
    section = recipe.model
    if request.pipeline is not None:
        section = section.model_copy(update={"source": request.pipeline})
    try:
        decoder = find_decoder(section, shape)
    except GacqError:
        return  # the pipeline itself will say what is wrong
    check_size(request.width, request.height, shape, decoder)


def _refuse_prompts(request: ImageRequest, family: str) -> None:
    given = [name for name in _STEERS if getattr(request, name) not in (None, ())]
    if given:
        option = {"prompts": "--prompt"}.get(given[0], f"--{given[0].replace('_', '-')}")
        raise UsageError(
            f"{family} is not conditioned on prompts: {option} means nothing to it.",
            "Choose classes with --class, if the model has them.",
        )
