"""The large pipelines are what a download looks like, and the same every time: shown on small ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import large_models, large_pipelines
from gacq_deploy.models.trajectories.collect import find_model, record_denoiser
from gacq_deploy.recipe.load import load_recipe
from tests.support.models.architectures import SD_UNET, SDXL_UNET

SMALL = {
    "sd15": SD_UNET | {"cross_attention_dim": 768},
    "sdxl": SDXL_UNET | {"cross_attention_dim": 2048, "projection_class_embeddings_input_dim": 6 * 16 + 1280},
}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers'
@pytest.mark.parametrize("model", SMALL)
def test_a_pipeline_in_shards_runs_with_guidance(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large_models, "SHARD", 2**20)
    make: Callable[..., Path] = getattr(large_pipelines, f"make_{model}")
    folders = [make(tmp_path / name, **SMALL[model]) for name in ("a", "b")]
    denoisers = []
    for folder in folders:
        assert len(list((folder / "unet").glob("*.safetensors"))) > 1
        recipe = load_recipe(f"{model}-w8a8", [f"model.source={folder}", "samples.steps=2"])
        denoiser, branches = record_denoiser(find_model(recipe), recipe)
        assert branches == 2
        denoisers.append(denoiser)
    assert denoisers[0].record.weights_sha256 == denoisers[1].record.weights_sha256
