"""The step of the calibration that smooths: what it chooses, that it resumes, and what it refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gacq_deploy.artifact.artifact import CalibrationArtifact
from gacq_deploy.calibration.checkpoint import Checkpoint
from gacq_deploy.calibration.planning import make_plan
from gacq_deploy.calibration.session import Session
from gacq_deploy.calibration.smoothing import ensure_smoothing
from gacq_deploy.calibration.stage import calibrate
from gacq_deploy.calibration.weighting.weighting import Split, Weighting
from gacq_deploy.errors import CalibrationError, RecipeError
from gacq_deploy.inspection.artifact import inspect_artifact
from gacq_deploy.models.base import Denoiser
from gacq_deploy.models.structure.graph import trace_model
from gacq_deploy.models.structure.norms import norms_of_linears
from gacq_deploy.models.trajectories.collect import DrawnTrajectories
from gacq_deploy.progress import SILENT
from gacq_deploy.quant.smoothing import ALPHAS
from gacq_deploy.recipe.load import load_recipe
from gacq_deploy.recipe.quantization import SmoothingSection
from gacq_deploy.recipe.sections import Recipe
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.samples.calibration_set import CalibrationSet
from gacq_deploy.spec import Site
from gacq_deploy.storage.digests import digest_file
from gacq_deploy.storage.documents import read_json
from gacq_deploy.storage.files import write_json
from tests.support.models.architectures import save_pipeline, small_dit, small_sd_unet

QUICK = (
    "samples.trajectories=6",
    "samples.steps=4",
    "calibration.threads=1",
    "calibration.reconstruction.iterations=2",
    "calibration.weighting.mode=uniform",
    "calibration.polish.steps=2",
    "parity={steps: 4, images: 4, probe: {trajectories: 1, local_samples: 1}}",
    "runtime.steps=4",
)
GROUPS = (
    ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    ("attn1.to_out.0",),
    ("ff.net.0.proj",),
    ("ff.net.2",),
)


def recipe(source: Path | str, alpha: float | str = "search", match: str = "*") -> Recipe:
    smoothing = f"quantization.smoothing={{alpha: {alpha}, match: '{match}'}}"
    return load_recipe("dit-w8a8", [*QUICK, f"model.source={source}", smoothing])


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline(small_dit(num_layers=1), tmp_path_factory.mktemp("smoothed") / "model")


@pytest.fixture(scope="module")
def finished(
    source: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunDirectory, CalibrationArtifact]:
    directory = RunDirectory(tmp_path_factory.mktemp("smoothed") / "run")
    return directory, calibrate(recipe(source), directory)


def digests(directory: RunDirectory) -> tuple[str, ...]:
    manifest = read_json(directory.artifact / "manifest.json", what="", hint="")
    files = (directory.artifact / f"{name}.safetensors" for name in ("tensors", "probe", "diagnostics"))
    return (str(manifest["digest"]), *(digest_file(path) for path in files))


def test_readers_of_one_tensor_share_what_was_found(
    finished: tuple[RunDirectory, CalibrationArtifact],
) -> None:
    artifact = finished[1]
    smoothing = {
        site.module.removeprefix("transformer_blocks.0."): s for site, s in artifact.smoothing.items()
    }
    assert smoothing
    for names in GROUPS:
        mine = [smoothing[n] for n in names if n in smoothing]
        assert len(mine) in (0, len(names))
        for one in mine:
            assert one.alpha in ALPHAS
            assert one.norm is None
            np.testing.assert_array_equal(one.factor, mine[0].factor)
    assert artifact.recipe["quantization"]["smoothing"] == {"alpha": "search", "match": "*"}
    shown = {s.site: s.smoothing for s in inspect_artifact(finished[0].root).sites}
    assert shown == {
        str(e.site): getattr(artifact.smoothing.get(e.site), "alpha", None) for e in artifact.plan
    }


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_killed_around_the_step_it_gives_the_same_bytes(
    finished: tuple[RunDirectory, CalibrationArtifact], source: Path, tmp_path: Path, kept: int
) -> None:
    """As if killed before the step, behind it, and behind the ranges."""
    shutil.copytree(finished[0].root, tmp_path / "run")
    directory = RunDirectory(tmp_path / "run")
    shutil.rmtree(directory.artifact)
    shutil.rmtree(directory.work / "polish")
    path = directory.work / "checkpoint.json"
    checkpoint = read_json(path, what="", hint="")
    steps = sorted(checkpoint["steps"].items(), key=lambda item: str(item[1]["file"]))
    assert [name for name, _ in steps][:2] == ["smoothing", "ranges"]
    write_json(path, checkpoint | {"steps": dict(steps[:kept])})
    calibrate(recipe(source), directory)
    assert digests(directory) == digests(finished[0])


def test_another_alpha_is_another_run(
    finished: tuple[RunDirectory, CalibrationArtifact], source: Path
) -> None:
    with pytest.raises(RecipeError, match=r"quantization\.smoothing"):
        calibrate(recipe(source, 0.5), finished[0])


def session_of(denoiser: Denoiser, asked: Recipe) -> Session:
    """A session over random states: nothing is sampled."""
    inputs = denoiser.example_inputs(12, seed=3)
    latents = inputs.pop("sample").numpy()
    timesteps = np.tile(np.array([999, 749, 499, 249]), 3)
    inputs.pop("timestep")
    samples = CalibrationSet(
        latents=latents,
        timesteps=timesteps,
        conditioning={k: v.numpy() for k, v in inputs.items()},
        targets=np.zeros_like(latents),
        trajectory=np.repeat(np.arange(3), 4),
        step=np.tile(np.arange(4), 3),
        validation=np.repeat(np.array([0, 0, 1], np.uint8), 4),
    )
    graph = trace_model(denoiser)
    split = Split(samples, 2)
    weighting = Weighting(asked.calibration, split)
    trajectories = DrawnTrajectories(denoiser, asked, RunDirectory(Path("nowhere")))
    return Session(
        asked, denoiser, graph, make_plan(asked, graph), split, weighting, trajectories, SILENT, 2048
    )


def chosen(denoiser: Denoiser, asked: Recipe, folder: Path) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    return ensure_smoothing(session_of(denoiser, asked), Checkpoint(folder, "key"))


def test_norms_of_one_block_carry_it(tmp_path: Path) -> None:
    unet = small_sd_unet()
    asked = load_recipe("sd15-w8a8", ["quantization.smoothing={alpha: 0.5}", "calibration.threads=1"])
    norms = norms_of_linears(unet)
    found = chosen(unet, asked, tmp_path)
    carried = {name: s.norm for name, s in found.items() if s.norm is not None}
    assert carried == {layer: norm for norm, layers in norms.items() for layer in layers}
    assert len(carried) == 5 * len([n for n in norms if n.endswith("norm1")])
    text = {id(s) for name, s in found.items() if name.endswith(("attn2.to_k", "attn2.to_v"))}
    assert len(text) == 1
    shapes = {s.factor.shape for name, s in found.items() if name.endswith("to_k") and "attn2" in name}
    assert shapes == {torch.Size([48])}


def test_a_pattern_chooses_whole_tensors(tmp_path: Path) -> None:
    dit = small_dit(num_layers=1)
    some = chosen(dit, recipe("x", 0.5, "*.ff.net.2"), tmp_path)
    assert list(some) == ["transformer_blocks.0.ff.net.2"]
    graph = trace_model(dit)
    with pytest.raises(RecipeError, match=r"chooses '.*to_q' but not '.*to_k'"):
        make_plan(recipe("x", 0.5, "*.to_q"), graph)
    with pytest.raises(RecipeError, match="chooses none of 6 quantized linear layers"):
        make_plan(recipe("x", 0.5, "*.to_nowhere"), graph)


def test_layers_whose_input_stays_float_are_left_alone(tmp_path: Path) -> None:
    asked = recipe("x", 0.5).document()["quantization"]
    asked["rules"].append({"match": "*.to_q", "layer": "linear", "bits": 4, "block": 16})
    dit = small_dit(num_layers=1)
    mixed = load_recipe("dit-w8a8", ["calibration.threads=1", f"quantization={json.dumps(asked)}"])
    found = chosen(dit, mixed, tmp_path)
    whole = chosen(dit, recipe("x", 0.5), tmp_path / "whole")
    assert set(whole) - set(found) == {"transformer_blocks.0.attn1.to_q"}


def test_an_activation_that_is_not_finite_is_named(tmp_path: Path) -> None:
    dit = small_dit(num_layers=1)
    asked = session_of(dit, recipe("x", 0.5))
    latents = asked.split.samples.latents.copy()
    latents[0, 0, 0, 0] = np.nan
    broken = replace(asked.split.samples, latents=latents)
    with pytest.raises(CalibrationError, match=r"to_q:input.* NaN"):
        ensure_smoothing(replace(asked, split=Split(broken, 2)), Checkpoint(tmp_path, "key"))


def test_a_recipe_without_it_says_nothing_of_it() -> None:
    plain = load_recipe("dit-w8a8")
    assert plain.document()["quantization"]["smoothing"] is None
    asked = load_recipe("dit-w8a8", ["quantization.smoothing={}"])
    assert asked.quantization.smoothing == SmoothingSection(alpha=0.5, match="*")
    assert asked.calibration_digest != plain.calibration_digest
    with pytest.raises(RecipeError, match=r"smoothing\.alpha"):
        load_recipe("dit-w8a8", ["quantization.smoothing.alpha=1.5"])
    with pytest.raises(RecipeError, match=r"smoothing\.alpha"):
        load_recipe("dit-w8a8", ["quantization.smoothing.alpha=find"])


def test_the_smoothed_input_is_what_the_probe_keeps(
    finished: tuple[RunDirectory, CalibrationArtifact],
) -> None:
    artifact = finished[1]
    assert artifact.probe is not None
    for site, value in artifact.probe.local["input_quant"].items():
        if site in ("inputs", "output"):
            continue
        codes = value / float(artifact.params[Site.parse(site)].scale)
        np.testing.assert_allclose(codes, np.rint(codes), atol=1e-3)
        assert np.abs(codes).max() <= 128
