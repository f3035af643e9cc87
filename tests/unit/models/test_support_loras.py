"""Do the small LoRAs of the tests fit their pipelines, and does fusing add what they say?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from tests.support.models.loras import ATTENTION, make_lora
from tests.support.models.pipelines import PIPELINES

FACTORS = {"unet": (".lora.down", ".lora.up"), "transformer": (".lora_A", ".lora_B")}


def weights(module: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "part"), [("sd-unchecked", "unet"), ("sd3", "transformer"), ("flux-dev", "transformer")]
)
def test_fusing_adds_the_scaled_product_of_the_factors(name: str, part: str, tmp_path: Path) -> None:
    source = PIPELINES[name](tmp_path / "model")
    file = make_lora(source, tmp_path / "lora", rank=4, alpha=8)
    pipeline: Any = DiffusionPipeline.from_pretrained(source)
    before = weights(getattr(pipeline, part))
    pipeline.load_lora_weights(file)
    pipeline.fuse_lora(components=[part], lora_scale=0.5)
    pipeline.unload_lora_weights()
    after = weights(getattr(pipeline, part))
    assert list(after) == list(before)
    changed = {layer for layer in before if not torch.equal(before[layer], after[layer])}
    assert changed == {k for k in before if k.removesuffix(".weight").endswith(ATTENTION)}
    factors = load_file(file)
    first, second = FACTORS[part]
    for layer in changed:
        stem = f"{part}.{layer.removesuffix('.weight')}"
        added = factors[f"{stem}{second}.weight"] @ factors[f"{stem}{first}.weight"]
        torch.testing.assert_close(after[layer], before[layer] + 0.5 * 8 / 4 * added)


def test_a_text_encoder_has_its_own_layers(tmp_path: Path) -> None:
    source = PIPELINES["sd-unchecked"](tmp_path / "model")
    names = list(load_file(make_lora(source, tmp_path / "lora", text_encoder=True)))
    assert {name.split(".")[0] for name in names} == {"unet", "text_encoder"}
