"""Weights stay in their files, mapped; the same model comes out, and what does not fit is refused all the same."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import diffusers
import pytest
import torch
import transformers
from diffusers import DDIMScheduler, DiTTransformer2DModel
from safetensors.torch import load_file, save_file

from gacq_deploy.errors import ArtifactError, BackendUnavailable, ModelError
from gacq_deploy.models import source
from gacq_deploy.models.loading import named_class, quiet_loading
from gacq_deploy.models.pipelines import open_pipeline
from gacq_deploy.recipe.sections import ModelSection
from tests.support.models.architectures import DIT
from tests.support.models.pipelines import make_stable_diffusion
from tests.support.models.tiny import random_model, tiny_unet
from tests.support.programs.commands import child_environment

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(params=["unet", "dit with a computed position table", "shards"])
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A model folder with its scheduler."""
    root = tmp_path / "model"
    if "dit" in request.param:
        random_model(DiTTransformer2DModel, DIT, 0).save_pretrained(root)
    else:
        shard = {"max_shard_size": "100KB"} if request.param == "shards" else {}
        tiny_unet().save_pretrained(root, **shard)
    DDIMScheduler().save_pretrained(root / "scheduler")
    return root


def is_mapped(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor lies in a region that the kernel says is a weight file's."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        low, high = (int(x, 16) for x in line.split()[0].split("-"))
        if low <= tensor.data_ptr() < high:
            return line.endswith(".safetensors")
    return False


def test_every_weight_is_the_file_s_own(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    denoiser = source.load_float_denoiser(ModelSection(source=str(folder)))
    stored = {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}
    state = denoiser.module.state_dict()
    assert state.keys() == stored.keys()
    assert all(torch.equal(value, stored[name]) for name, value in state.items())
    assert all(is_mapped(p) for p in denoiser.module.parameters())
    assert not any(b.is_meta for b in denoiser.module.buffers())
    with torch.no_grad():
        output = denoiser.call_module()(*denoiser.example_inputs(2).values())
    assert bool(output.isfinite().all())
    assert capfd.readouterr().err == ""


def test_the_model_never_writes_into_its_file(tmp_path: Path) -> None:
    tiny_unet().save_pretrained(tmp_path)
    DDIMScheduler().save_pretrained(tmp_path / "scheduler")
    before = (tmp_path / WEIGHTS).read_bytes()
    module = source.load_float_denoiser(ModelSection(source=str(tmp_path))).module
    with torch.no_grad():
        for parameter in module.parameters():  # as fusing an adapter does
            parameter.add_(1.0)
    assert (tmp_path / WEIGHTS).read_bytes() == before


@pytest.mark.parametrize("damage", ["lack", "unknown", "shape", "nan", "inf"])
def test_what_does_not_fit_is_refused(tmp_path: Path, damage: str) -> None:
    tiny_unet().save_pretrained(tmp_path)
    DDIMScheduler().save_pretrained(tmp_path / "scheduler")
    state = load_file(tmp_path / WEIGHTS)
    said = {
        "lack": "lack tensor 'conv_in.bias'",
        "unknown": "hold the unknown tensor 'conv_in.gain'",
        "shape": "block_out_channels = .* makes",
        "nan": "'conv_in.bias' holds NaN or Inf",
        "inf": "'conv_in.bias' holds NaN or Inf",
    }[damage]
    match damage:
        case "lack":
            del state["conv_in.bias"]
        case "unknown":
            state["conv_in.gain"] = torch.zeros(1)
        case "shape":
            path = tmp_path / "config.json"
            config = json.loads(path.read_text())
            path.write_text(json.dumps(config | {"block_out_channels": [16, 32]}))
        case _:
            state["conv_in.bias"][0] = -float(damage)
    save_file(state, tmp_path / WEIGHTS)
    kind = ModelError if damage in ("lack", "unknown") else ArtifactError
    with pytest.raises(kind, match=said):
        source.load_float_denoiser(ModelSection(source=str(tmp_path)))


def test_a_pipeline_is_opened_without_a_word(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = source.find_source(ModelSection(source=str(make_stable_diffusion(tmp_path / "sd"))))
    capfd.readouterr()
    assert (
        open_pipeline(found, source.load_float_denoiser(found.section).module).name
        == "StableDiffusionPipeline"
    )
    assert capfd.readouterr() == ("", "")


def test_what_the_users_program_told_other_libraries_holds_again() -> None:
    logs = (diffusers.utils.logging, transformers.utils.logging)
    before = [(log.get_verbosity(), log.is_progress_bar_enabled()) for log in logs]
    assert all(bars for _, bars in before)
    with pytest.raises(ModelError), quiet_loading():
        assert not any(log.is_progress_bar_enabled() for log in logs)
        assert {log.get_verbosity() for log in logs} == {40}
        raise ModelError("a fault inside")
    assert [(log.get_verbosity(), log.is_progress_bar_enabled()) for log in logs] == before


@pytest.mark.slow
def test_a_class_is_imported_without_a_word() -> None:
    code = "from gacq_deploy.models.loading import named_class; print(named_class('StableDiffusionPipeline').__name__)"
    # a fresh interpreter: what is imported already has nothing to say
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=child_environment(), capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("StableDiffusionPipeline\n", "")


@pytest.mark.parametrize(
    ("name", "module", "lacking", "hint"),
    [
        (
            "StableDiffusionPipeline",
            "torch_and_transformers",
            ["transformers"],
            "pip install 'gacq-deploy[text]'",
        ),
        ("LMSDiscreteScheduler", "torch_and_scipy", ["scipy"], "pip install scipy"),
        # installed, but of a version that diffusers does not take
        ("LMSDiscreteScheduler", "torch_and_scipy", [], "pip install torch scipy"),
    ],
)
def test_a_stand_in_is_named_with_the_packages_that_it_needs(
    name: str, module: str, lacking: list[str], hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = getattr(import_module(f"diffusers.utils.dummy_{module}_objects"), name)
    monkeypatch.setattr(diffusers, name, stand_in)
    for library in lacking:
        monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(
        BackendUnavailable, match=f"{name} needs {lacking[0] if lacking else 'torch and'}"
    ) as caught:
        named_class(name)
    assert caught.value.hint == hint
