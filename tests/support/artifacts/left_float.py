"""A recipe with more layers left float, as a user would write it."""

from __future__ import annotations

from collections.abc import Iterable

from gacq_deploy.recipe.quantization import Rule
from gacq_deploy.recipe.sections import Recipe


def leave_float(recipe: Recipe, patterns: Iterable[str]) -> Recipe:
    """Return the recipe with these modules left float."""
    rules = (*recipe.quantization.rules, *(Rule(match=p, ignore=True) for p in patterns))
    section = recipe.quantization.model_copy(update={"rules": rules})
    return recipe.model_copy(update={"quantization": section})
