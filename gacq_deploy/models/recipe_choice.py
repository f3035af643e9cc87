"""Which built-in recipe suits a model, where the user names none? Its class says it; nothing is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gacq_deploy.models.source import Source

_TRANSFORMERS = {
    "DiTTransformer2DModel": ("a class-conditional DiT", "dit-w8a8"),
    "SD3Transformer2DModel": ("an MMDiT", "sd3-w8a8"),
    "FluxTransformer2DModel": ("an MMDiT", "flux-w8a8"),
    "PixArtTransformer2DModel": ("a DiT that reads text", "pixart-w8a8"),
}
"""Class -> what it is, and the recipe of its family."""


@dataclass(frozen=True)
class RecipeChoice:
    """A built-in recipe's name, and what about the model chose it, in words."""

    recipe: str
    why: str


def choose_recipe(source: Source) -> RecipeChoice:
    """Return the recipe of the model's family, or the general one of its structure."""
    kind = source.family.name
    what, recipe = _chosen(kind, source.config)
    return RecipeChoice(recipe, f"{kind} is {what}")


def _chosen(kind: str, config: Mapping[str, Any]) -> tuple[str, str]:
    if kind in _TRANSFORMERS:
        return _TRANSFORMERS[kind]
    if kind == "UNet2DConditionModel":
        # SDXL alone adds pooled text and sizes to the time embedding
        is_sdxl = config.get("addition_embed_type") == "text_time"
        return "a latent UNet that reads text", "sdxl-w8a8" if is_sdxl else "sd15-w8a8"
    if kind == "UNet2DModel":
        return "a UNet without text", "unet-w8a8"
    if kind.startswith("UNet"):
        return "a UNet of a class without a recipe of its own", "unet-w8a8"
    return "of a class without a recipe of its own", "transformer-w8a8"
