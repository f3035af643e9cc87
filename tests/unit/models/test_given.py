from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline

import gacq_deploy as gd
from gacq_deploy.models.given import with_pipeline
from gacq_deploy.models.source import find_source, load_module
from gacq_deploy.recipe.sections import Recipe
from tests.support.models.tiny import SCHEDULER, WITHOUT_ATTENTION, tiny_unet


class Notes(gd.LoggingReporter):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


def pipeline(seed: int = 0) -> Any:
    unet = tiny_unet(classes=None, seed=seed, **WITHOUT_ATTENTION)
    return DDPMPipeline(unet, DDIMScheduler.from_config(SCHEDULER))  # type: ignore[no-untyped-call]


@pytest.fixture
def recipe() -> Recipe:
    return gd.load_recipe("fashion-w8a8", model={"source": "somewhere", "classes": None})


@pytest.fixture
def run(tmp_path: Path) -> gd.RunDirectory:
    return gd.RunDirectory(tmp_path / "run")


def test_weights_that_lie_in_a_folder_are_found_there(
    tmp_path: Path, recipe: Recipe, run: gd.RunDirectory
) -> None:
    pipeline().save_pretrained(tmp_path / "model")
    loaded, notes = DDPMPipeline.from_pretrained(tmp_path / "model"), Notes()
    found = with_pipeline(recipe, loaded, run, notes)
    assert found.model.source == str(tmp_path / "model")
    assert not run.model.exists()
    assert notes.texts == [f"model: the weights are those of {tmp_path / 'model'}"]


def test_weights_that_changed_are_saved_into_the_run_once(
    tmp_path: Path, recipe: Recipe, run: gd.RunDirectory
) -> None:
    pipeline().save_pretrained(tmp_path / "model")
    loaded: Any = DDPMPipeline.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        loaded.unet.conv_in.weight.add_(1)
    for said in ("was saved to", "are those of"):
        notes = Notes()
        found = with_pipeline(recipe, loaded, run, notes)
        assert found.model.source == str(run.model)
        assert said in notes.texts[0]
        assert str(run.model) in notes.texts[0]
    saved = load_module(find_source(found.model))
    assert torch.equal(saved.state_dict()["conv_in.weight"], loaded.unet.conv_in.weight)


def test_half_precision_is_the_same_model(tmp_path: Path, recipe: Recipe, run: gd.RunDirectory) -> None:
    half = pipeline()
    half.unet.half()
    half.save_pretrained(tmp_path / "model")
    loaded = DDPMPipeline.from_pretrained(tmp_path / "model", dtype=torch.float16)
    assert with_pipeline(recipe, loaded, run, Notes()).model.source == str(tmp_path / "model")
    assert loaded.unet.dtype == torch.float16, "the caller's model is left as it was"


SMALL = {
    "samples": {"trajectories": 4, "steps": 4},
    "quantization": {
        "rules": [
            {"match": "*", "ignore": True},
            {"match": "up_blocks.1*", "bits": 8},
            {"match": "*time_emb*", "ignore": True},
        ]
    },
    "calibration": {
        "reconstruction": {"iterations": 2},
        "weighting": {"mode": "uniform"},
        "polish": {"steps": 2},
        "threads": 1,
    },
    "parity": {"probe": {"trajectories": 2, "local_samples": 2}},
}


@pytest.mark.slow
def test_a_pipeline_is_calibrated_and_its_run_goes_on_without_it(
    tmp_path: Path, run: gd.RunDirectory
) -> None:
    recipe = gd.load_recipe("fashion-w8a8", model={"source": "unused", "classes": None}, **SMALL)
    artifact = gd.calibrate(recipe, run, model=pipeline())
    assert gd.export_onnx(run).graphs == ("float.onnx", "int8.onnx", "int8.cpu.onnx")
    again = gd.calibrate(run.load_recipe(), run)
    assert again.manifest_digest == artifact.manifest_digest
    assert gd.calibrate(recipe, run, model=pipeline()).manifest_digest == artifact.manifest_digest
    with pytest.raises(gd.GacqError, match="other weights than the pipeline's"):
        gd.calibrate(recipe, run, model=pipeline(seed=4))


def test_what_is_no_pipeline_is_refused(recipe: Recipe, run: gd.RunDirectory) -> None:
    with pytest.raises(gd.GacqError, match="UNet2DModel, not a pipeline"):
        with_pipeline(recipe, pipeline().unet, run, Notes())
    adapted = pipeline()
    adapted.unet.peft_config = {"default": object()}
    with pytest.raises(gd.GacqError, match="adapters that are not fused"):
        with_pipeline(recipe, adapted, run, Notes())
