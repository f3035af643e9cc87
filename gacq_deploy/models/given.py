"""Where does a pipeline that the caller has loaded lie, so that another process can load it, too?"""

from __future__ import annotations

from typing import Any

import diffusers
from torch import Tensor, nn

from gacq_deploy.errors import GacqError, UsageError
from gacq_deploy.models.source import digest_values, digest_weights, find_source, load_module, own_component
from gacq_deploy.progress import Reporter
from gacq_deploy.recipe.load import absolute_source
from gacq_deploy.recipe.sections import ModelSection, Recipe
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.storage.files import atomic_directory


def with_pipeline(recipe: Recipe, pipeline: Any, directory: RunDirectory, report: Reporter) -> Recipe:
    """Return the recipe with the place where a loaded pipeline's weights lie, saving them there if they lie nowhere.

    Args:
        recipe: its model section keeps what it says beside the source.
        pipeline: of diffusers, with a denoiser.
        directory: receives ``model/`` if the weights are not those of the place that the pipeline came from.
        report: hears which of the two it is.

    Raises:
        UsageError: no pipeline, adapters that are not fused, or the run is another model's.
        ModelError: which of its modules is the denoiser is not clear.
        ResourceError: the disk is full, or another process uses the directory.
    """
    if not isinstance(pipeline, diffusers.DiffusionPipeline):
        raise UsageError(
            f"model is a {type(pipeline).__name__}, not a pipeline of diffusers.",
            "Pass the whole pipeline; a denoiser alone does not tell its scheduler.",
        )
    loaded: Any = pipeline
    component = own_component(pipeline, recipe.model.component)
    module: nn.Module = getattr(pipeline, component)
    if getattr(module, "peft_config", None):
        raise UsageError(
            f"The pipeline's {component} has adapters that are not fused into it.",
            "Call pipe.fuse_lora() and pipe.unload_lora_weights() first, or name the files in model.loras.",
        )
    digest = _digest(module)
    # where it came from, before what an earlier run of this directory may have saved
    for place in filter(None, (str(loaded.config.get("_name_or_path") or ""), str(directory.model))):
        section = recipe.model.model_copy(update={"source": absolute_source(place), "component": component})
        if _lies_there(section, digest):
            report.note(f"model: the weights are those of {section.source}")
            return recipe.model_copy(update={"model": section})
    if directory.model.exists():
        raise UsageError(
            f"{directory.model} holds a model with other weights than the pipeline's.",
            "Calibrate another model in a run directory of its own.",
        )
    with directory.writing(new=True):
        directory.take()
        with atomic_directory(directory.model, ()) as folder:
            loaded.save_pretrained(folder, safe_serialization=True)
    report.note(f"model: the weights lie nowhere else, so the pipeline was saved to {directory.model}")
    section = recipe.model.model_copy(
        update={"source": absolute_source(str(directory.model)), "component": component}
    )
    return recipe.model_copy(update={"model": section})


def _lies_there(section: ModelSection, digest: str) -> bool:
    """Tell whether the denoiser there has these weights; what cannot be loaded has not."""
    try:
        return digest_weights(load_module(find_source(section.model_copy(update={"loras": ()})))) == digest
    except GacqError:
        return False


def _digest(module: nn.Module) -> str:
    """Return what :func:`~gacq_deploy.models.source.digest_weights` would, were the module in float32 on the CPU."""
    return digest_values({name: _plain(value) for name, value in module.state_dict().items()})


def _plain(value: Tensor) -> Tensor:
    value = value.detach().cpu()
    return value.float() if value.is_floating_point() else value
