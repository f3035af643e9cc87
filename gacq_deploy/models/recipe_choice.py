"""Which built-in recipe suits a model, where the user names none? Its class says it; nothing is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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


def choose_recipe(kind: str, config: Mapping[str, Any]) -> RecipeChoice:
    """Return the recipe of the model's family, or the general one of its structure.

    Args:
        kind: name of the denoiser's class.
        config: its configuration.
    """
    what, recipe = _chosen(kind, config)
    return RecipeChoice(recipe, f"{kind} is {what}")


def _chosen(kind: str, config: Mapping[str, Any]) -> tuple[str, str]:
    if kind in _TRANSFORMERS:
        return _TRANSFORMERS[kind]
    if kind == "UNet2DConditionModel":
        # SDXL alone adds pooled text and sizes to the time embedding
        is_sdxl = config.get("addition_embed_type") == "text_time"
        return "a latent UNet that reads text", "sdxl-w8a8" if is_sdxl else "sd15-w8a8"
    if kind == "UNet2DModel":
        return f"a UNet without text, {_space(config)}", "unet-w8a8"
    if kind.startswith("UNet"):
        return "a UNet of a class without a recipe of its own", "unet-w8a8"
    return "of a class without a recipe of its own", "transformer-w8a8"


def _space(config: Mapping[str, Any]) -> str:
    """Return where a UNet draws: grey and RGB are pixels, other numbers of channels a decoder's latents."""
    return "in pixel space" if config.get("in_channels") in (1, 3) else "in latent space"
