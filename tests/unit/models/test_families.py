"""Families differ in how they are called; the denoiser's own call shape, its trace and its refusals do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gacq_deploy.calibration.cost.estimate import estimate_calibration
from gacq_deploy.calibration.stage import calibrate
from gacq_deploy.errors import ModelError
from gacq_deploy.models.base import Denoiser
from gacq_deploy.models.source import FAMILIES, load_float_denoiser
from gacq_deploy.models.structure.graph import trace_model
from gacq_deploy.recipe.load import load_recipe
from gacq_deploy.recipe.sections import ModelSection
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.spec import Site
from tests.support.models.architectures import (
    SD_UNET,
    SDXL_UNET,
    save_pipeline,
    small_dit,
    small_sd_unet,
    small_sdxl_unet,
)

MODELS = {"sd": small_sd_unet, "sdxl": small_sdxl_unet, "dit": small_dit}


@pytest.fixture(scope="module", params=sorted(MODELS))
def denoiser(request: pytest.FixtureRequest) -> Denoiser:
    made: Denoiser = MODELS[request.param]()
    return made


def test_one_call_shape(denoiser: Denoiser) -> None:
    inputs = denoiser.example_inputs(3)
    with torch.no_grad():
        positional = denoiser.call_module()(*inputs.values())
        sample, timestep = inputs.pop("sample"), inputs.pop("timestep")
        named = denoiser(sample, timestep, inputs)
    assert torch.equal(positional, named)
    assert named.shape == sample.shape


def test_every_input_matters(denoiser: Denoiser) -> None:
    inputs = denoiser.example_inputs(1)
    call = denoiser.call_module()
    with torch.no_grad():
        reference = call(*inputs.values())
        for name, value in inputs.items():
            changed = (value + 1) % 10 if value.dtype == torch.int64 else value + 1
            assert not torch.equal(call(*(inputs | {name: changed}).values()), reference), name


def test_a_model_is_the_same_after_a_round_trip_through_a_folder(denoiser: Denoiser, tmp_path: Path) -> None:
    loaded = load_float_denoiser(ModelSection(source=str(save_pipeline(denoiser, tmp_path / "model"))))
    assert loaded.family is denoiser.family
    assert loaded.record.weights_sha256 == denoiser.record.weights_sha256
    assert loaded.record.conditioning == denoiser.record.conditioning
    assert loaded.record.sample_shape == denoiser.record.sample_shape


def test_conditioning_is_described_by_name_type_and_shape() -> None:
    assert small_sd_unet().record.conditioning == {
        "encoder_hidden_states": {"dtype": "float32", "shape": [77, 48]}
    }
    assert small_sdxl_unet().record.conditioning == {
        "encoder_hidden_states": {"dtype": "float32", "shape": [77, 48]},
        "text_embeds": {"dtype": "float32", "shape": [32]},
        "time_ids": {"dtype": "float32", "shape": [6]},
    }
    assert small_dit().record.conditioning == {
        "class_labels": {"dtype": "int64", "shape": [], "num_classes": 10}
    }


def test_a_learned_variance_is_left_out() -> None:
    denoiser = small_dit()
    inputs = denoiser.example_inputs(2)
    with torch.no_grad():
        both = denoiser.module(*inputs.values(), return_dict=False)[0]
        noise = denoiser.call_module()(*inputs.values())
    assert both.shape == (2, 8, 8, 8)
    assert torch.equal(both[:, :4], noise)
    plain = small_dit(out_channels=4)
    with torch.no_grad():
        assert plain.call_module()(*plain.example_inputs(2).values()).shape == (2, 4, 8, 8)


@pytest.mark.parametrize(
    ("family", "changes", "fragment"),
    [
        ("UNet2DConditionModel", SD_UNET | {"in_channels": 9}, "takes 9 channels and predicts 4"),
        ("UNet2DConditionModel", SD_UNET | {"class_embed_type": "timestep"}, "class_embed_type='timestep'"),
        ("UNet2DConditionModel", SD_UNET | {"encoder_hid_dim_type": "text_proj"}, "encoder_hid_dim_type"),
        ("UNet2DConditionModel", SD_UNET | {"attention_type": "gated"}, "attention_type='gated'"),
        (
            "UNet2DConditionModel",
            SD_UNET | {"cross_attention_dim": [32, 64]},
            "cross_attention_dim=\\[32, 64\\]",
        ),
        ("UNet2DConditionModel", SDXL_UNET | {"addition_embed_type": "image"}, "addition_embed_type='image'"),
        ("DiTTransformer2DModel", {"in_channels": 4, "out_channels": 3}, "takes 4 channels and predicts 3"),
    ],
)
def test_what_a_family_cannot_call_is_refused(family: str, changes: dict[str, Any], fragment: str) -> None:
    with pytest.raises(ModelError, match=fragment) as caught:
        describe = FAMILIES[family].describe
        assert describe is not None
        describe(changes, (4, 16, 16))
    assert "Supported" in caught.value.hint


def test_readers_of_one_tensor_are_tied_across_blocks() -> None:
    graph = trace_model(small_sd_unet())
    text = [s for s in graph.ties if s.role == "input" and s.module.endswith(("attn2.to_k", "attn2.to_v"))]
    assert len(text) == 8
    assert len({graph.shared_tensor[s] for s in text}) == 1
    own = "mid_block.attentions.0.transformer_blocks.0.attn1"
    assert len({graph.ties[Site(f"{own}.to_{c}", "input")] for c in "qkv"}) == 1


def test_what_runs_twice_in_a_dit_is_told() -> None:
    embedder = "transformer_blocks.0.norm1.emb.timestep_embedder"
    graph = trace_model(small_dit())
    assert graph.repeated == {f"{embedder}.linear_1", f"{embedder}.linear_2"}
    assert len(set(graph.sites)) == len(graph.sites)


def test_calibration_says_at_once_that_text_needs_a_pipeline(tmp_path: Path) -> None:
    source = save_pipeline(small_sdxl_unet(), tmp_path / "model")
    recipe = load_recipe("sdxl-w8a8", [f"model.source={source}"])
    # nothing is loaded for that: the weights are unreadable
    (source / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    needs = r"no pipeline: it has no model_index\.json"
    with pytest.raises(ModelError, match=needs) as caught:
        calibrate(recipe, RunDirectory(tmp_path / "run"))
    assert "inside its pipeline" in caught.value.hint
    with pytest.raises(ModelError, match=needs):
        estimate_calibration(recipe)
    assert not (tmp_path / "run").exists()
