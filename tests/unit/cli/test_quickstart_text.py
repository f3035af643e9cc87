"""What `quickstart` proposes behind its result: to learn, where nothing was learned yet."""

from __future__ import annotations

from pathlib import Path

import pytest

from gacq_deploy.recipe.load import load_recipe
from gacq_deploy_cli.quickstart import deeper_steps

HERE = Path("runs/quickstart")


@pytest.mark.parametrize(
    ("recipe", "chosen"), [("fashion-w8a8", ""), ("fashion-w4a8", " -r fashion-w4a8")], ids=["demo", "other"]
)
def test_where_nothing_was_learned_the_next_preset_is_named(recipe: str, chosen: str) -> None:
    (step,) = deeper_steps(load_recipe(recipe, preset="nearest"), recipe, HERE)
    assert str(step) == (
        "Next, learn rounding and scales, too:\n"
        f"    gacq-deploy quickstart{chosen} --preset quick -o runs/quickstart-quick"
    )


@pytest.mark.parametrize("preset", ["quick", "best"])
def test_where_something_was_learned_nothing_is_proposed(preset: str) -> None:
    assert list(deeper_steps(load_recipe("fashion-w8a8", preset=preset), "fashion-w8a8", HERE)) == []
