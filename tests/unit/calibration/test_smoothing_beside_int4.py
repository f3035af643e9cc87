"""Smoothing moves the step of a quantized input into the weight: a float input beside INT4 weights has none."""

from __future__ import annotations

import pytest

from gacq_deploy.calibration.planning import make_plan
from gacq_deploy.calibration.smoothing import smoothing_groups
from gacq_deploy.errors import RecipeError
from gacq_deploy.models.structure.graph import trace_model
from gacq_deploy.recipe.load import parse_recipe
from gacq_deploy.recipe.quantization import SmoothingSection
from tests.support.models.tiny import tiny_denoiser

RECIPE = """
schema: gacq-deploy/recipe/1
name: x
quantization:
  rules:
    - {match: "*", ignore: true}
    - {match: "mid_block.*.to_*", bits: 8}
"""
INT4 = "    - {{match: '{}', layer: linear, bits: 4, block: 16}}\n"


def groups(*int4: str) -> tuple[tuple[str, ...], ...]:
    graph = trace_model(tiny_denoiser(block_out_channels=(8, 32)))
    recipe = parse_recipe(RECIPE + "".join(map(INT4.format, int4)), origin="x")
    return smoothing_groups(SmoothingSection(), make_plan(recipe, graph), graph)


def test_layers_with_int4_weights_are_left_alone() -> None:
    names = [f"mid_block.attentions.0.{n}" for n in ("to_q", "to_k", "to_v", "to_out.0")]
    assert groups() == (tuple(names[:3]), (names[3],))
    assert groups("*.to_k") == ((names[0], names[2]), (names[3],))
    with pytest.raises(RecipeError, match="chooses none of 0 quantized linear layers"):
        groups("*.to_*")
