"""The presets are a ladder: every rung learns at least as long, and the next one up can be named."""

from __future__ import annotations

from itertools import pairwise

from gacq_deploy.recipe.load import load_recipe
from gacq_deploy.recipe.presets import HIDDEN_PRESETS, PRESETS, preset_of, shown_presets, stronger_preset


def test_every_rung_takes_more() -> None:
    assert shown_presets() == ("nearest", "quick", "standard", "best")
    rungs = [load_recipe("unet-w8a8", preset=name) for name in shown_presets()]
    for lower, upper in pairwise(rungs):
        assert upper.samples.trajectories >= lower.samples.trajectories
        assert upper.calibration.reconstruction.iterations > lower.calibration.reconstruction.iterations
        assert upper.calibration.polish.steps > lower.calibration.polish.steps


def test_the_next_rung_is_named_and_a_recipe_tells_its_own() -> None:
    ladder = [*shown_presets(), None]
    for name, above in pairwise(ladder):
        recipe = load_recipe("unet-w8a8", preset=name)
        assert preset_of(recipe) == name
        assert stronger_preset(recipe) == above


def test_the_hidden_one_goes_on_working() -> None:
    assert PRESETS.keys() >= HIDDEN_PRESETS
    assert load_recipe("fashion-w8a8", preset="ci").calibration.polish.steps == 20
