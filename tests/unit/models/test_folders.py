"""What is missing or wrong in a pipeline's folder is said before anything is loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gacq_deploy.errors import ArtifactError, GacqError, ModelError, RecipeError, UsageError
from gacq_deploy.models.call_recorder import record_call
from gacq_deploy.models.pipelines import open_pipeline
from gacq_deploy.models.source import find_source, load_module
from gacq_deploy.models.trajectories.collect import find_model
from gacq_deploy.recipe.load import load_recipe
from gacq_deploy.recipe.sections import Recipe
from tests.support.models.pipelines import PIPELINES


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return PIPELINES["sd"](tmp_path_factory.mktemp("whole") / "model")


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    path.write_text(json.dumps(document), encoding="utf-8")


def to_bin(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        file.rename(file.with_name("pytorch_model.bin"))


def to_shards(folder: Path) -> None:
    (file,) = folder.glob("*.safetensors")
    shards = [f"{file.stem}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = {"weight_map": {"a": shards[0], "b": shards[1]}}
    file.with_name(f"{file.name}.index.json").write_text(json.dumps(index), encoding="utf-8")
    file.rename(file.with_name(shards[0]))


def damage(folder: Path, kind: str) -> None:
    index = folder / "model_index.json"
    match kind:
        case "no index":
            index.unlink()
        case "no text encoder":
            edit(index, lambda d: d.update(text_encoder=[None, None]))
        case "no encoder folder":
            shutil.rmtree(folder / "text_encoder")
        case "no tokenizer folder":
            shutil.rmtree(folder / "tokenizer")
        case "pickled encoder":
            to_bin(folder / "text_encoder")
        case "pickled denoiser":
            to_bin(folder / "unet")
        case "half a denoiser":
            to_shards(folder / "unet")
        case "truncated":
            file = next((folder / "vae").glob("*.safetensors"))
            file.write_bytes(file.read_bytes()[:40])
        case "remote pipeline":
            edit(index, lambda d: d.update(_class_name=["pipeline", "EvilPipeline"]))
        case "remote denoiser":
            edit(folder / "unet" / "config.json", lambda d: d.update(auto_map={"AutoModel": "evil.Model"}))
        case "unknown pipeline":
            edit(index, lambda d: d.update(_class_name="TomorrowPipeline"))
        case "image to image":
            edit(index, lambda d: d.update(_class_name="StableDiffusionInpaintPipeline"))
        case "an autoencoder":
            shutil.rmtree(folder / "unet")
            shutil.copytree(folder / "vae", folder / "unet")
        case _:
            raise AssertionError(kind)


def recipe_of(folder: Path, *overrides: str) -> Recipe:
    return load_recipe("sd15-w8a8", [f"model.source={folder}", *overrides])


@pytest.mark.parametrize(
    ("kind", "error", "fragment"),
    [
        ("no index", ModelError, "no model_index.json"),
        ("no text encoder", ModelError, r"has no text encoder \(text_encoder null\)"),
        ("no encoder folder", ModelError, "component 'text_encoder' .* has no folder"),
        ("no tokenizer folder", ModelError, "component 'tokenizer' .* has no folder"),
        ("pickled encoder", ModelError, r"only pickled weights \(pytorch_model.bin\)"),
        ("pickled denoiser", ModelError, r"only pickled weights \(pytorch_model.bin\)"),
        ("half a denoiser", ModelError, "names 2 files, of which 1 are missing"),
        ("truncated", ArtifactError, "truncated or malformed"),
        ("remote pipeline", ModelError, "remote code, which is never run"),
        ("remote denoiser", ModelError, "remote code .*, which is never run"),
        ("unknown pipeline", ModelError, "'TomorrowPipeline' is no pipeline of diffusers"),
        ("image to image", ModelError, "StableDiffusionInpaintPipeline also wants image, mask_image"),
        ("an autoencoder", ModelError, "AutoencoderKL is not a denoiser"),
    ],
)
def test_a_damaged_folder_is_refused_before_work(
    kind: str, error: type[GacqError], fragment: str, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    damage(folder, kind)
    with pytest.raises(error, match=fragment) as caught:
        find_model(recipe_of(folder))
    assert caught.value.hint


def test_a_whole_folder_passes(whole: Path) -> None:
    assert find_model(recipe_of(whole)).is_prompted


def test_an_unknown_component_is_answered_with_those_there_are(whole: Path) -> None:
    with pytest.raises(ModelError, match="no component 'unit'") as caught:
        find_model(recipe_of(whole, "model.component=unit"))
    assert "text_encoder, unet, vae" in caught.value.hint.replace("safety_checker, ", "")


def test_a_scheduler_that_nothing_follows_is_refused_before_a_trajectory(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    edit(folder / "model_index.json", lambda d: d.update(scheduler=["diffusers", "EDMEulerScheduler"]))
    edit(
        folder / "scheduler" / "scheduler_config.json",
        lambda d: d.update(_class_name="EDMEulerScheduler", prediction_type="epsilon"),
    )
    source = find_source(recipe_of(folder).model)
    with pytest.raises(ModelError, match="EDMEulerScheduler"):
        record_call(open_pipeline(source, load_module(source)), 4)


def test_prompts_are_for_models_that_take_some() -> None:
    with pytest.raises(RecipeError, match="1 prompts for UNet2DModel"):
        find_model(load_recipe("fashion-w8a8", ['samples.prompts=["a shoe"]']))


@pytest.mark.parametrize(
    ("source", "fragment"),
    [
        ("python:no_such_module:make", "cannot be imported"),
        ("python:json:no_such_function", "cannot be imported"),
        ("python:json", "cannot be imported"),
        ("python:tests.support.models.odd_family:Painter", "returned Painter, not a pipeline"),
    ],
)
def test_a_function_that_gives_no_pipeline_is_refused(source: str, fragment: str) -> None:
    with pytest.raises(UsageError, match=fragment):
        find_model(load_recipe("sd15-w8a8", [f"model.source={source}"]))
