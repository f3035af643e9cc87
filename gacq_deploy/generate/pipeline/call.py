"""What is a pipeline asked for with an engine inside, and what images come out?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gacq_deploy.artifact.call import SAMPLE
from gacq_deploy.backends.base import Engine
from gacq_deploy.diffusers.denoiser import EngineDenoiser
from gacq_deploy.errors import EngineError, GacqError, ModelError, ResourceError, UsageError
from gacq_deploy.generate.request import ImageRequest
from gacq_deploy.generate.size import check_pixels
from gacq_deploy.models.loading import FAILURES, named_class
from gacq_deploy.models.pipelines import OpenPipeline, open_pipeline
from gacq_deploy.models.source import Source
from gacq_deploy.recipe.sections import Recipe
from gacq_deploy.storage.memory import lack_of_memory

"""A pipeline is somebody else's code: what does not suit it may raise any of these."""


def open_around(source: Source, denoiser: EngineDenoiser, scheduler: str | None, device: str) -> OpenPipeline:
    """Open the pipeline with the engine in its denoiser's place, and another scheduler of diffusers if one is named.

    Raises:
        ModelError: it cannot be opened, or not be moved to the device.
        ResourceError: out of memory.
    """
    module: Any = denoiser
    opened = open_pipeline(source, module)
    pipeline = opened.pipeline
    setattr(pipeline, source.component, denoiser)  # a user's own function made it with the float one
    try:
        pipeline.to(device)
    except (RuntimeError, AssertionError) as error:
        raise _failure(f"The pipeline cannot be moved to '{device}'", error, "Pass --device cpu.") from error
    if scheduler is not None:
        pipeline.scheduler = named_class(scheduler).from_config(pipeline.scheduler.config)
    return opened


def call_arguments(
    opened: OpenPipeline, request: ImageRequest, recipe: Recipe, engine: Engine
) -> dict[str, Any]:
    """Return what every call of the pipeline is given, as in calibration but for what was asked.

    Raises:
        UsageError: something was asked for that the pipeline or the graph does not take.
    """
    steps = request.steps
    given: dict[str, Any] = {
        "num_inference_steps": recipe.runtime.steps if steps is None else steps,
        "output_type": "np",
    }
    if request.negative_prompt is not None:
        _require(opened, "negative_prompt")
        if opened.takes("true_cfg_scale"):
            raise UsageError(
                f"{opened.name} takes a negative prompt only beside its distilled guidance, at twice the calls.",
                "Leave --negative-prompt out.",
            )
        given["negative_prompt"] = request.negative_prompt
    if request.guidance_scale is not None:
        _require(opened, "guidance_scale")
    if opened.takes("guidance_scale"):
        scales = (request.guidance_scale, recipe.samples.guidance_scale, opened.guidance_scale)
        given["guidance_scale"] = next(scale for scale in scales if scale is not None)
    given |= _size(opened, request, engine)
    if opened.takes("use_resolution_binning"):  # what is asked for, not the nearest size of a table
        given["use_resolution_binning"] = False
    return given


def _require(opened: OpenPipeline, argument: str) -> None:
    if not opened.takes(argument):
        raise UsageError(
            f"{opened.name} takes no {argument.replace('_', ' ')}.",
            f"Leave --{argument.replace('_', '-')} out.",
        )


def _size(opened: OpenPipeline, request: ImageRequest, engine: Engine) -> dict[str, int]:
    """Return height and width in pixels, as far as they are not the pipeline's own."""
    factor = int(getattr(opened.pipeline, "vae_scale_factor", 1))
    given = {}
    if opened.sample_size is not None and opened.takes("height"):
        given = dict.fromkeys(("height", "width"), opened.sample_size * factor)
    asked = {k: v for k, v in (("height", request.height), ("width", request.width)) if v is not None}
    if not asked:
        return given
    if not opened.takes("height"):
        raise UsageError(f"{opened.name} takes no size.", "Leave --width and --height out.")
    shape = next(info.shape for info in engine.inputs if info.name == SAMPLE)
    if len(shape) != 4:
        raise UsageError(
            f"{opened.name} packs its latents, and the graph takes one size only.",
            "Leave --width and --height out.",
        )
    latent = {"height": shape[2], "width": shape[3]}
    for name, pixels in asked.items():
        check_pixels(name, pixels, factor, latent[name])
    return given | asked


def run_pipeline(
    opened: OpenPipeline, given: Mapping[str, Any], prompts: Sequence[str], seeds: Sequence[int]
) -> NDArray[np.float32]:
    """Run one batch to the end.

    Args:
        opened: the pipeline.
        given: to every call, see :func:`call_arguments`.
        prompts: one an image, if it takes them.
        seeds: one an image.

    Returns:
        Images ``[N, C, H, W]`` in [-1, 1].

    Raises:
        UsageError, EngineError: of the engine inside.
        ModelError: the pipeline fails, or makes no images.
        ResourceError: out of memory.
    """
    call = dict(given)
    if opened.takes("prompt"):
        call["prompt"] = list(prompts)
        if "negative_prompt" in given:
            call["negative_prompt"] = [given["negative_prompt"]] * len(prompts)
    elif opened.takes("batch_size"):
        call["batch_size"] = len(seeds)
    call["generator"] = [torch.Generator().manual_seed(seed) for seed in seeds]
    try:
        with torch.no_grad():
            result = opened.pipeline(**call)
    except GacqError:
        raise
    except FAILURES as error:
        raise _failure(
            f"{opened.name} fails", error, "Run it once without gacq-deploy, with the same prompt."
        ) from error
    return _pictures(getattr(result, "images", result), opened.name, len(seeds))


def _pictures(images: Any, pipeline: str, count: int) -> NDArray[np.float32]:
    """Return images ``[N, H, W, C]`` or ``[N, C, H, W]`` in [0, 1], of numpy or torch, as ``run`` writes them."""
    values = images.float().cpu().numpy() if isinstance(images, torch.Tensor) else np.asarray(images)
    if values.ndim == 4 and values.shape[-1] in (1, 3):
        values = values.transpose(0, 3, 1, 2)
    if values.ndim != 4 or values.shape[1] not in (1, 3) or len(values) != count:
        raise ModelError(
            f"{pipeline} made {type(images).__name__} {list(values.shape)}, not {count} images.",
            "Put the engine into the pipeline yourself: gacq_deploy.diffusers.load_denoiser.",
        )
    if not bool(np.isfinite(values).all()):
        raise EngineError(f"{pipeline}: images are not finite.", "Check the decoder's weights.")
    return np.asarray(values * 2 - 1, np.float32)


def _failure(what: str, error: Exception, hint: str) -> GacqError:
    message = f"{what}: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    if isinstance(error, torch.OutOfMemoryError):
        return ResourceError(message, "Pass --batch 1, or --device cpu for text encoders and decoder.")
    return lack_of_memory(error, what) or ModelError(message, hint)
