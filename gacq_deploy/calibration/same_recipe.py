"""Whose run lies in a directory? One of another recipe is refused, before anything heavy is imported."""

from __future__ import annotations

from typing import NoReturn

from gacq_deploy.errors import RecipeError
from gacq_deploy.recipe.sections import Recipe
from gacq_deploy.run_directory import RunDirectory

_RELEARNED = ("calibration.weighting", "calibration.polish", "calibration.objective")
"""Parts of the recipe that finished work takes note of by itself, step by step."""


def check_same_recipe(recipe: Recipe, directory: RunDirectory) -> None:
    """Refuse a directory that holds a run of another recipe.

    Weighting, polish and objective may change: what does not depend on them is kept, the rest is learned again. A
    device that is left open is none that differs.

    Raises:
        RecipeError: naming the keys of the calibration sections that differ, or both kinds of device.
    """
    if not directory.recipe_path.is_file():
        return
    old = directory.load_recipe()
    began = old.calibration.device_class
    recipe = as_begun(recipe, old)
    if old.calibration_digest != recipe.calibration_digest:
        relevant = _differences(old.decisive(), recipe.decisive())
        if all(c.startswith(_RELEARNED) for c in relevant):
            return
        if relevant == ["calibration.device"]:
            refuse_device(directory, began, recipe.calibration.device_class)
        raise RecipeError(
            f"{directory.root} holds a run of another recipe; it differs in {', '.join(relevant)}.",
            "Choose another directory with -o.",
        )


def as_begun(recipe: Recipe, old: Recipe) -> Recipe:
    """Return the recipe with what it leaves open of the device as the run began."""
    asked, begun = recipe.calibration, old.calibration
    kind = begun.device_class if asked.device == "auto" else asked.device
    memory = begun.gpu_memory_mb if asked.gpu_memory_mb is None else asked.gpu_memory_mb
    return recipe.on_device(kind, memory)


def refuse_device(directory: RunDirectory, began: str, now: str) -> NoReturn:
    """Refuse to go on with a run on another kind of device: sums come out otherwise there.

    Raises:
        RecipeError: always.
    """
    where = "on a machine with a GPU" if began == "cuda" else "here"
    raise RecipeError(
        f"{directory.root} holds a calibration that began on {began}, and this one would go on on {now}.",
        f"Pass --device {began} {where} to go on with it, or choose another directory with -o.",
    )


def _differences(old: object, new: object, prefix: str = "") -> list[str]:
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new else [prefix]
    found: list[str] = []
    for key in sorted({*old, *new}):
        name = f"{prefix}.{key}" if prefix else str(key)
        found += _differences(old.get(key), new.get(key), name)
    return found
