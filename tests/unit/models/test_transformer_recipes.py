"""The recipes for transformers quantize attention and feed-forward layers, and leave what sees one row an image."""

from __future__ import annotations

import re

import pytest

from gacq_deploy.calibration.planning import make_plan
from gacq_deploy.models.structure.graph import trace_model
from gacq_deploy.recipe.load import load_recipe
from tests.support.models.joint_transformers import JOINT

ATTENTION = {"to_q", "to_k", "to_v", "to_out.0"}
TEXT = {"add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"}
FEED_FORWARD = {"net.0.proj", "net.2"}
QUANTIZED = {
    "pixart": {"attn1": ATTENTION, "attn2": ATTENTION, "ff": FEED_FORWARD},
    "sd3": {"attn": ATTENTION | TEXT, "attn2": ATTENTION, "ff": FEED_FORWARD, "ff_context": FEED_FORWARD},
    "flux": {
        "attn": ATTENTION | TEXT,
        "ff": FEED_FORWARD,
        "ff_context": FEED_FORWARD,
        "": {"proj_mlp", "proj_out"},
    },
}


@pytest.mark.parametrize("name", QUANTIZED)
def test_each_recipe_quantizes_just_these_layers_of_its_blocks(name: str) -> None:
    plan = make_plan(load_recipe(f"{name}-w8a8"), trace_model(JOINT[name]()))
    found: dict[str, set[str]] = {}
    for module in plan.modules:
        match = re.fullmatch(
            r"(?:single_)?transformer_blocks\.\d+\.(?:(attn\d?|ff|ff_context)\.)?([\w.]+)", module
        )
        assert match, module
        found.setdefault(match[1] or "", set()).add(match[2])
    assert found == QUANTIZED[name]


@pytest.mark.parametrize(("name", "level"), [(n, level) for n in QUANTIZED for level in ("ffn", "qkv")])
def test_lower_levels_work_for_them_too(name: str, level: str) -> None:
    plan = make_plan(load_recipe(f"{name}-w8a8", [f"quantization.level={level}"]), trace_model(JOINT[name]()))
    layers = {m.rpartition(".")[2] for m in plan.modules}
    assert ("to_q" in layers) == (level == "qkv")
    assert ("add_v_proj" in layers) == (level == "qkv" and name != "pixart")
    assert not any("to_out" in m or "to_add_out" in m for m in plan.modules)
