"""Models load from folders as diffusers writes them, safetensors only; everything else is refused with the remedy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from safetensors.torch import load_file, save_file

from gacq_deploy.errors import ArtifactError, GacqError, ModelError, RecipeError, UsageError
from gacq_deploy.models.source import load_float_denoiser
from gacq_deploy.recipe.sections import ModelSection
from tests.support.models.tiny import tiny_unet

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A component folder with its scheduler beside it."""
    tiny_unet().save_pretrained(tmp_path / "model" / "unet")
    DDPMScheduler(beta_schedule="squaredcos_cap_v2").save_pretrained(tmp_path / "model" / "scheduler")
    return tmp_path / "model"


def test_three_layouts_give_the_same_model(folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    tiny_unet().save_pretrained(bare)
    DDPMScheduler(beta_schedule="squaredcos_cap_v2").save_pretrained(bare / "scheduler")
    pipeline = tmp_path / "pipeline"
    DDPMPipeline(tiny_unet(), DDPMScheduler(beta_schedule="squaredcos_cap_v2")).save_pretrained(pipeline)
    loaded = [
        load_float_denoiser(ModelSection(source=str(p))) for p in (folder, folder / "unet", bare, pipeline)
    ]
    assert len({d.record.weights_sha256 for d in loaded}) == 1
    first = loaded[0]
    assert first.record.sample_shape == (1, 8, 8)
    assert first.record.conditioning["class_labels"]["num_classes"] == 4
    assert first.record.prediction_type == "epsilon"
    assert not any(p.requires_grad for p in first.module.parameters())


def test_one_call_shape_with_and_without_classes(folder: Path, tmp_path: Path) -> None:
    tiny_unet(classes=None).save_pretrained(tmp_path / "plain" / "unet")
    DDPMScheduler().save_pretrained(tmp_path / "plain" / "scheduler")
    for source, names in (
        (folder, ["sample", "timestep", "class_labels"]),
        (tmp_path / "plain", ["sample", "timestep"]),
    ):
        denoiser = load_float_denoiser(ModelSection(source=str(source)))
        inputs = denoiser.example_inputs(3)
        assert list(inputs) == names
        with torch.no_grad():
            positional = denoiser.call_module()(*inputs.values())
            named = denoiser(inputs.pop("sample"), inputs.pop("timestep"), inputs)
        assert torch.equal(positional, named)
        assert named.shape == (3, 1, 8, 8)
    with pytest.raises(RecipeError, match="class table has 0 entries") as caught:
        load_float_denoiser(ModelSection(source=str(tmp_path / "plain"), classes=10))
    assert caught.value.hint.endswith("--set model.classes=null.")


def test_the_builtin_models_load() -> None:
    denoiser = load_float_denoiser(ModelSection(source="builtin:digits8", classes=10))
    assert denoiser.record.conditioning["class_labels"]["num_classes"] == 10
    with pytest.raises(UsageError, match="no built-in model 'nope'") as caught:
        load_float_denoiser(ModelSection(source="builtin:nope"))
    assert "digits8, dit-digits8, fashion16" in caught.value.hint


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def spoil(folder: Path, how: str) -> ModelSection:
    """Damage the folder and return the section that loads it."""
    weights = folder / "unet" / WEIGHTS
    match how:
        case "pickled":
            weights.rename(weights.with_suffix(".bin"))
        case "no weights":
            weights.unlink()
        case "truncated":
            weights.write_bytes(weights.read_bytes()[:1000])
        case "nan":
            state = load_file(weights)
            state["conv_in.bias"][0] = float("nan")
            save_file(state, weights)
        case "other shapes":
            edit_config(folder, block_out_channels=[16, 32])
        case "remote code":
            edit_config(folder, auto_map={"AutoModel": "evil.Model"})
        case "unknown class":
            edit_config(folder, _class_name="FancyNet")
        case "class embedding type":
            edit_config(folder, class_embed_type="timestep", num_class_embeds=None)
        case "no scheduler":
            (folder / "scheduler" / "scheduler_config.json").unlink()
        case "prediction type":
            path = folder / "scheduler" / "scheduler_config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": "flow"}))
        case "flow matching":
            path = folder / "scheduler" / "scheduler_config.json"
            path.write_text(json.dumps({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}))
        case "config is a list":
            (folder / "unet" / "config.json").write_text("[]")
        case "scheduler is a list":
            (folder / "scheduler" / "scheduler_config.json").write_text("[]")
        case "config is not json":
            (folder / "unet" / "config.json").write_text("{")
        case "empty folder":
            return ModelSection(source=str(folder / "scheduler"))
        case "missing folder":
            return ModelSection(source=str(folder / "nowhere"))
        case "a file":
            return ModelSection(source=str(weights))
        case "component":
            return ModelSection(source=str(folder), component="prior")
        case "too many classes":
            return ModelSection(source=str(folder), classes=5)
    return ModelSection(source=str(folder))


@pytest.mark.parametrize(
    ("how", "kind", "fragment"),
    [
        ("pickled", ModelError, "only pickled weights"),
        ("no weights", ModelError, "no weights"),
        ("truncated", ArtifactError, "truncated or malformed"),
        ("nan", ArtifactError, "'conv_in.bias' holds NaN"),
        ("other shapes", ArtifactError, r"block_out_channels = \[16, 32\] makes '.*' .*, the weights hold"),
        ("remote code", ModelError, "remote code"),
        ("unknown class", ModelError, "'FancyNet' is no model class of diffusers"),
        ("class embedding type", ModelError, "class_embed_type='timestep'"),
        ("no scheduler", ModelError, "noise schedule is unknown"),
        ("prediction type", ModelError, "prediction_type 'flow'"),
        ("flow matching", ModelError, "'FlowMatchEulerDiscreteScheduler' does not describe"),
        ("config is a list", ArtifactError, "no object"),
        ("scheduler is a list", ArtifactError, "no object"),
        ("config is not json", ArtifactError, "not readable JSON"),
        ("empty folder", ModelError, "no denoiser"),
        ("missing folder", UsageError, "neither a folder nor a hub id"),
        ("a file", UsageError, "is a file"),
        ("component", ModelError, "no component 'prior'"),
        ("too many classes", RecipeError, "class table has 4 entries"),
    ],
)
def test_what_cannot_be_used_is_refused_with_a_remedy(
    folder: Path, how: str, kind: type[GacqError], fragment: str
) -> None:
    with pytest.raises(kind, match=fragment) as caught:
        load_float_denoiser(spoil(folder, how))
    assert caught.value.hint


def test_a_hub_id_that_cannot_be_fetched_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match=r"'someone/some-model'.*cannot be fetched") as caught:
        load_float_denoiser(ModelSection(source="someone/some-model"))
    assert "pass its path" in caught.value.hint


@pytest.mark.parametrize("asked", [None, "v1", "ab" * 20])
def test_the_commit_of_a_hub_model_is_recorded(
    asked: str | None, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "ab" * 20
    repository = tmp_path / "cache" / "models--owner--tiny"
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    for name in ("main", "v1"):
        (repository / "refs" / name).write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    record = load_float_denoiser(ModelSection(source="owner/tiny", revision=asked)).record
    assert (record.source, record.revision) == ("owner/tiny", commit)
    # a folder is what it is, whatever its name
    snapshot = str(repository / "snapshots" / commit)
    assert load_float_denoiser(ModelSection(source=snapshot)).record.revision is None
