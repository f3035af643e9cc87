"""A model's class says which built-in recipe suits it; what is chosen quantizes something of the model."""

from __future__ import annotations

from typing import Any

import pytest

from gacq_deploy.models.recipe_choice import choose_recipe
from gacq_deploy.recipe.load import builtin_recipes, load_recipe
from gacq_deploy.recipe.plan import resolve_plan
from gacq_deploy.spec import Site


@pytest.mark.parametrize(
    ("kind", "config", "recipe"),
    [
        ("UNet2DModel", {}, "unet-w8a8"),
        ("UNet2DConditionModel", {}, "sd15-w8a8"),
        ("UNet2DConditionModel", {"addition_embed_type": "text_time"}, "sdxl-w8a8"),
        ("UNet3DConditionModel", {}, "unet-w8a8"),
        ("DiTTransformer2DModel", {}, "dit-w8a8"),
        ("SD3Transformer2DModel", {}, "sd3-w8a8"),
        ("FluxTransformer2DModel", {}, "flux-w8a8"),
        ("PixArtTransformer2DModel", {}, "pixart-w8a8"),
        ("AuraFlowTransformer2DModel", {}, "transformer-w8a8"),
        ("SomebodysDenoiser", {}, "transformer-w8a8"),
    ],
)
def test_the_class_chooses(kind: str, config: dict[str, Any], recipe: str) -> None:
    found = choose_recipe(kind, config)
    assert found.recipe == recipe
    assert found.recipe in builtin_recipes()
    assert found.why.startswith(f"{kind} is ")


@pytest.mark.parametrize("name", ["unet-w8a8", "transformer-w8a8"])
def test_a_general_recipe_fits_any_layer_names(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.model.classes is None
    layers = ("layers.0.attention", "layers.1.something")
    sites = [Site(layer, role) for layer in layers for role in ("weight", "input")]  # type: ignore[arg-type]
    assert resolve_plan(recipe, sites)
