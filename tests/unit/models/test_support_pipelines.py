"""Are the small pipelines of the tests what a user's download is: loadable offline, alive, published in layout?"""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from transformers import PreTrainedTokenizerBase

from tests.support.models.pipelines import PIPELINES, call_arguments

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers'


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_socket: socket.socket, address: Any) -> None:
        pytest.fail(f"asked the network for {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_of_the_table_is_one_a_user_could_have(name: str, tmp_path: Path) -> None:
    folder = PIPELINES[name](tmp_path / "model")
    pipeline = DiffusionPipeline.from_pretrained(folder)
    assert_published_layout(folder, pipeline)
    assert_no_weight_is_constant(pipeline)
    assert_latents_and_images_depend_on_what_is_asked(pipeline)


def assert_published_layout(folder: Path, pipeline: DiffusionPipeline) -> None:
    listed = json.loads((folder / "model_index.json").read_text())
    parts = {key for key, value in listed.items() if isinstance(value, list) and value[0] is not None}
    assert parts == {path.name for path in folder.iterdir() if path.is_dir()}
    assert listed["_class_name"] == type(pipeline).__name__
    for part, component in pipeline.components.items():
        names = {path.name for path in (folder / part).glob("*")}
        if isinstance(component, PreTrainedTokenizerBase):
            assert "tokenizer.json" not in names
            assert names & {"vocab.json", "spiece.model", "vocab.txt"}
        elif isinstance(component, torch.nn.Module):
            assert "config.json" in names
            assert names & {"model.safetensors", "diffusion_pytorch_model.safetensors"}


def assert_no_weight_is_constant(pipeline: DiffusionPipeline) -> None:
    for part, component in pipeline.components.items():
        if isinstance(component, torch.nn.Module):
            for name, weight in component.named_parameters():
                assert weight.numel() == 1 or weight.std() > 0, f"{part}.{name}"


def assert_latents_and_images_depend_on_what_is_asked(pipeline: Any) -> None:
    pipeline.set_progress_bar_config(disable=True)
    asked = call_arguments(pipeline)
    seeds = (
        [1, 2] if "batch_size" in asked else [1, 1]
    )  # the same noise: what differs is the prompt's or the class's
    made = {}
    for kind in ("latent", "np"):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        output = pipeline(**asked, generator=generators, output_type=kind)
        rows = made[kind] = np.asarray(output.images)
        assert rows.shape[0] == 2
        assert np.isfinite(rows).all()
        assert np.abs(rows[0] - rows[1]).mean() > 1e-2 * rows.std()
    assert made["np"].shape[-1] == 3
    assert made["np"].min() >= 0
    assert made["np"].max() <= 1
    assert made["np"].std() > 0.05


def test_classes_have_names(tmp_path: Path) -> None:
    pipeline = DiffusionPipeline.from_pretrained(PIPELINES["dit"](tmp_path / "model"))
    assert pipeline.get_label_ids(["goldfish", "tench"]) == [1, 0]
