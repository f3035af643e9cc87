"""The least that is a run directory: a recipe."""

from __future__ import annotations

from pathlib import Path

from gacq_deploy.recipe.load import load_recipe


def write_recipe(root: Path, *, name: str = "tiny", description: str = "") -> None:
    """Save the shipped recipe under another name."""
    recipe = load_recipe("fashion-w8a8").model_copy(update={"name": name, "description": description})
    recipe.save(root / "recipe.yaml")
