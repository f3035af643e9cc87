"""Whose run lies in a directory? One of another recipe is refused, before anything heavy is imported."""

from __future__ import annotations

from gacq_deploy.errors import RecipeError
from gacq_deploy.recipe.sections import Recipe
from gacq_deploy.run_directory import RunDirectory

_RELEARNED = ("calibration.weighting", "calibration.polish", "calibration.objective")
"""Parts of the recipe that finished work takes note of by itself, step by step."""


def check_same_recipe(recipe: Recipe, directory: RunDirectory) -> None:
    """Refuse a directory that holds a run of another recipe.

    Weighting, polish and objective may change: what does not depend on them is kept, the rest is learned again.

    Raises:
        RecipeError: naming the keys of the calibration sections that differ.
    """
    if not directory.recipe_path.is_file():
        return
    old = directory.load_recipe()
    if old.calibration_digest != recipe.calibration_digest:
        changed = _differences(old.document(), recipe.document())
        relevant = [c for c in changed if c.startswith(("model", "samples", "quantization", "calibration"))]
        if all(c.startswith(_RELEARNED) for c in relevant):
            return
        raise RecipeError(
            f"{directory.root} holds a run of another recipe; it differs in {', '.join(relevant)}.",
            "Choose another directory with -o.",
        )


def _differences(old: object, new: object, prefix: str = "") -> list[str]:
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new else [prefix]
    found: list[str] = []
    for key in sorted({*old, *new}):
        name = f"{prefix}.{key}" if prefix else str(key)
        found += _differences(old.get(key), new.get(key), name)
    return found
