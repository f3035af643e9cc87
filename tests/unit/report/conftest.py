"""The least that is a run directory: a recipe and the mark."""

from __future__ import annotations

from pathlib import Path

from gacq_deploy.recipe.load import load_recipe
from gacq_deploy.run_directory import RunDirectory


def write_recipe(root: Path, *, name: str = "tiny", description: str = "") -> None:
    """Save the shipped recipe under another name."""
    recipe = load_recipe("fashion-w8a8").model_copy(update={"name": name, "description": description})
    recipe.save(root / "recipe.yaml")
    RunDirectory(root).take()
