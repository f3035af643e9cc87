"""How is the pipeline around a denoiser opened and run? Checked while it still costs nothing, and never decoded."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import nn

from gacq_deploy.errors import ModelError
from gacq_deploy.models.components import check_components, check_finite, name_culprit
from gacq_deploy.models.folders import INSTALL_TEXT, check_pipeline, locate_root, read_pipeline
from gacq_deploy.models.loading import FAILURES, first_line, named_class, quiet_loading
from gacq_deploy.models.lora import fuse_text_parts
from gacq_deploy.models.placement import home_of, move, visit
from gacq_deploy.models.source import Source
from gacq_deploy.recipe.sections import SamplesSection
from gacq_deploy.storage.memory import lack_of_memory

_CLOSED = {
    "safety_checker": None,
    "feature_extractor": None,
    "requires_safety_checker": False,
    "image_encoder": None,
}
"""What a pipeline is opened without: it censors images, or encodes those that nobody gives."""


_TEXT_ENCODERS = "transformers."
"""What the modules begin with that define them."""


@dataclass(frozen=True)
class OpenPipeline:
    """A pipeline with its denoiser, which is its component of that name."""

    pipeline: Any
    component: str
    denoiser: nn.Module
    sample_size: int | None
    """Height and width of a state that were asked for; None: the pipeline's own."""

    @property
    def name(self) -> str:
        """The pipeline's class."""
        return type(self.pipeline).__name__

    @property
    def guidance_scale(self) -> float:
        """What the pipeline guides with when nobody says."""
        default = self._parameters["guidance_scale"].default if self.takes("guidance_scale") else 1.0
        return float(default) if isinstance(default, int | float) else 1.0

    def takes(self, argument: str) -> bool:
        """Whether the pipeline's call has this argument."""
        return argument in self._parameters

    @property
    def _parameters(self) -> Any:
        return inspect.signature(type(self.pipeline).__call__).parameters

    @torch.no_grad()
    def run(self, prompts: Sequence[str], seeds: Sequence[int], steps: int, guidance: float | None) -> None:
        """Run whole trajectories, one a seed; what the denoiser is called with is for others to watch.

        Raises:
            ModelError: the pipeline fails.
        """
        given: dict[str, Any] = {
            "num_inference_steps": steps,
            "generator": [torch.Generator().manual_seed(seed) for seed in seeds],
            "output_type": "latent",
        }
        if self.takes("prompt"):
            given["prompt"] = list(prompts)
        elif self.takes("batch_size"):
            given |= {"batch_size": len(seeds), "output_type": "np"}
        if guidance is not None and self.takes("guidance_scale"):
            given["guidance_scale"] = guidance
        if self.sample_size is not None and self.takes("height"):
            pixels = self.sample_size * int(getattr(self.pipeline, "vae_scale_factor", 1))
            given |= {"height": pixels, "width": pixels}
        # what is asked for, not the nearest size of a table, and prompts as they are
        given |= {k: False for k in ("use_resolution_binning", "clean_caption") if self.takes(k)}
        try:
            self.pipeline(**given)
        except FAILURES as error:
            raise lack_of_memory(error, self.name) or ModelError(
                f"{self.name} fails on its own: {type(error).__name__}: {first_line(error)}",
                "Run it once without gacq-deploy: it must make an image from a prompt, a seed and a number of steps "
                "alone. Where its default size does not suit the model, set model.sample_size.",
            ) from error


def check_conditioning(source: Source, samples: SamplesSection) -> None:
    """Refuse what would fail when the pipeline is opened or run, from its files alone.

    Raises:
        ModelError: no pipeline around the denoiser, a component is missing or pickled, or its class is not known or
            wants more than prompts.
        ArtifactError: a weight file is truncated or malformed.
    """
    if source.pipeline is not None:
        _check_class(type(source.pipeline), samples)
        return
    root = locate_root(source.section, (), weights=True)
    index = read_pipeline(root)
    kind = named_class(index["_class_name"])
    if not (isinstance(kind, type) and issubclass(kind, diffusers.DiffusionPipeline)):
        raise ModelError(
            f"{root}: {index['_class_name']!r} is no pipeline of diffusers {diffusers.__version__}.",
            "Upgrade diffusers if it is newer than yours, or pass python:MODULE:FUNCTION, a function of yours that "
            "returns the pipeline.",
        )
    _check_class(kind, samples)
    check_pipeline(root, index)
    check_components(root, index, denoiser=source.component)


def open_pipeline(source: Source, denoiser: nn.Module) -> OpenPipeline:
    """Open the pipeline around a denoiser that is already loaded; what only decodes or censors stays closed.

    Raises:
        ModelError: a component cannot be loaded, or a LoRA's part for a text encoder does not fit it.
    """
    size = source.section.sample_size
    if source.pipeline is not None:
        fuse_text_parts(source.pipeline, source.section.loras, denoiser)
        return OpenPipeline(_beside(source.pipeline, denoiser), source.component, denoiser, size)
    assert source.root is not None
    index = read_pipeline(source.root)
    closed = {k: v for k, v in _CLOSED.items() if k in index}
    try:
        with quiet_loading():
            pipeline = diffusers.DiffusionPipeline.from_pretrained(  # type: ignore[no-untyped-call]
                source.root,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                **{source.component: denoiser},
                **closed,
            )
    except Exception as error:
        lack = lack_of_memory(error, f"Opening {source.root}")
        raise (
            lack
            or name_culprit(source.root, index)
            or ModelError(
                f"The pipeline in {source.root} cannot be opened: {type(error).__name__}: {first_line(error)}",
                f"{INSTALL_TEXT} if a text encoder's library is missing; otherwise mend the folder.",
            )
        ) from error
    for name, component in pipeline.components.items():
        # float16 overflows in some text encoders and is slow on a CPU; bfloat16, as the largest are stored, stays
        if name == source.component or not isinstance(component, nn.Module):
            continue
        check_finite(component, str(source.root / name))
        if _is_half(component):
            component.float()
    fuse_text_parts(pipeline, source.section.loras, denoiser)
    return OpenPipeline(_beside(pipeline, denoiser), source.component, denoiser, size)


def _is_half(module: nn.Module) -> bool:
    return any(p.dtype == torch.float16 for p in module.parameters())


def _check_class(kind: type[Any], samples: SamplesSection) -> None:
    parameters = inspect.signature(kind.__call__).parameters
    hint = (
        "Supported are pipelines that make an image from a prompt (or nothing), a seed and a number of steps."
    )
    given = {"self", "prompt", "num_inference_steps", "generator", "output_type", "batch_size"}
    wanted = [
        name
        for name, p in parameters.items()
        if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD and name not in given
    ]
    wanted += [name for name in ("image", "control_image", "mask_image") if name in parameters]
    if wanted:
        raise ModelError(f"{kind.__name__} also wants {', '.join(dict.fromkeys(wanted))}.", hint)
    if lost := [n for n in ("num_inference_steps", "generator") if n not in parameters]:
        raise ModelError(f"{kind.__name__} takes no {' and no '.join(lost)}.", hint)
    if samples.prompts and "prompt" not in parameters:
        raise ModelError(
            f"{kind.__name__} takes no prompts, and {len(samples.prompts)} are given.",
            "Leave --prompts out.",
        )


def _beside(pipeline: Any, denoiser: nn.Module) -> Any:
    """Return the pipeline, silent, ready for a denoiser on another device.

    What a pipeline takes for its device is that of its first module. There lies what it computes with; text encoders
    visit the denoiser's device for each call, and the denoiser's own calls bring their tensors there.
    """
    device = home_of(denoiser)
    home = getattr(pipeline, "device", device)
    for component in pipeline.components.values():
        if not isinstance(component, nn.Module) or component is denoiser:
            continue
        move(component, home)
        if device != home and type(component).__module__.startswith(_TEXT_ENCODERS):
            visit(component, device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
