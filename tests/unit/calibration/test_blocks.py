"""Blocks that do not divide a layer's input are refused before anything runs, with what would fit."""

from __future__ import annotations

import pytest

from gacq_deploy.calibration.planning import check_blocks, make_plan
from gacq_deploy.errors import RecipeError
from gacq_deploy.models.structure.graph import trace_model
from gacq_deploy.recipe.load import parse_recipe
from tests.support.models.tiny import tiny_denoiser

RECIPE = """
schema: gacq-deploy/recipe/1
name: x
quantization:
  rules: [{{match: "*", ignore: true}}, {{match: "*.to_*", layer: linear, bits: 4, block: {block}}}]
"""


def check(block: int, *widths: int) -> None:
    denoiser = tiny_denoiser(block_out_channels=widths)
    check_blocks(
        make_plan(parse_recipe(RECIPE.format(block=block), origin="x"), trace_model(denoiser)),
        denoiser.module,
    )


def test_blocks_that_divide_the_input_are_taken() -> None:
    check(16, 8, 32)


@pytest.mark.parametrize(
    ("block", "width", "hint"),
    [(64, 96, "block: 32"), (64, 64, "block: 32"), (256, 48, "block: 16"), (16, 24, "")],
)
def test_blocks_that_do_not_are_refused_with_those_that_would(block: int, width: int, hint: str) -> None:
    with pytest.raises(
        RecipeError, match=f"has {width} input features, and {block} must divide that"
    ) as caught:
        check(block, 8, width)
    assert caught.value.message.startswith("16 of 16 layers")
    assert caught.value.hint.startswith(f"Give them {hint} in a later rule" if hint else "Leave them float")
