"""Every mode goes through a whole calibration, records what it did, and repeats bit for bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from gacq_deploy.artifact.artifact import CalibrationArtifact
from gacq_deploy.calibration.resume import blocks_key
from gacq_deploy.calibration.stage import calibrate
from gacq_deploy.calibration.weighting.sample_weights import UniformWeights
from gacq_deploy.calibration.weighting.weighting import Split, StageLoss, Weighting, group_cosines
from gacq_deploy.models.source import load_float_denoiser
from gacq_deploy.progress import SilentReporter
from gacq_deploy.recipe.load import load_recipe
from gacq_deploy.recipe.sections import CalibrationSection, Recipe
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.samples.calibration_set import CalibrationSet
from gacq_deploy.storage.digests import digest_file
from gacq_deploy.storage.documents import read_json
from gacq_deploy.storage.files import write_json
from tests.support.artifacts.quantized import Bench, tiny_bench, tiny_samples, tiny_settings
from tests.support.models.one_level import MIDDLE, ONE_LEVEL
from tests.support.models.tiny import save_model, tiny_unet

KeyOf = Callable[..., str]
BOTH = "calibration.weighting.stages=[reconstruction, polish]"
GAC = ("calibration.weighting.mode=gac", BOTH)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tiny_unet(**ONE_LEVEL), tmp_path_factory.mktemp("model") / "model")


def recipe(model: Path, *more: str) -> Recipe:
    small = ("samples.trajectories=4", "samples.steps=3", "calibration.polish.steps=2", MIDDLE)
    return tiny_settings(f"model.source={json.dumps(str(model))}", "model.classes=4", *small, *more)


def learned(model: Path, root: Path, *more: str) -> CalibrationArtifact:
    return calibrate(recipe(model, *more), RunDirectory(root))


@dataclass(frozen=True)
class Finished:
    """A calibration that ran to its end, and its folder. Nobody changes it."""

    artifact: CalibrationArtifact
    root: Path


@pytest.fixture(scope="module")
def gac(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    root = tmp_path_factory.mktemp("gac") / "run"
    return Finished(learned(model, root, *GAC), root)


def tensors(root: Path) -> str:
    return digest_file(root / "artifact" / "tensors.safetensors")


# ------------------------------------------------------------------------------------------------- whole calibrations


@pytest.mark.parametrize("mode", ["relative", "mse", "gac", "gac_faithful"])
def test_every_mode_records_what_it_did(model: Path, gac: Finished, tmp_path: Path, mode: str) -> None:
    asked = (f"calibration.weighting.mode={mode}", BOTH)
    artifact = gac.artifact if asked == GAC else learned(model, tmp_path, *asked)
    found = artifact.diagnostics
    assert found is not None
    names = [*(h.name for h in artifact.history), "polish"]
    assert [s.stage for s in found.stages] == names
    for stage in found.stages:
        assert stage.mode == mode, stage.notes
        assert stage.weights.shape == (9,)
        assert bool(np.isfinite(stage.weights).all())
        assert float(stage.weights.mean()) == pytest.approx(1, abs=1e-5)
        assert 0.1 - 1e-6 <= float(stage.weights.min()) <= float(stage.weights.max()) <= 10
        assert 4.5 - 1e-6 <= stage.effective_samples <= 9 + 1e-6
        assert stage.cosine_before is not None
        assert stage.cosine_after is not None
        iterations = {"relative": 0}.get(mode, 2 if stage.stage == "polish" else 1)
        assert {len(values) for values in stage.trace.values()} <= {iterations}
    polish = found.stage("polish")
    assert polish is not None
    assert (polish.alignment is None) == (mode == "relative")
    assert bool((polish.weights != 1).any())
    assert artifact.polish is not None
    assert artifact.polish.effective_samples == pytest.approx(polish.effective_samples, rel=1e-5)
    assert set(found.error_sqnr_db) == {"nearest", "reconstruction", "polish"}


def test_uniform_is_what_uniform_weights_give(model: Path, tmp_path: Path) -> None:
    learned(model, tmp_path / "mode", "calibration.weighting.mode=uniform")
    given = calibrate(recipe(model, BOTH), RunDirectory(tmp_path / "given"), weights=UniformWeights())
    assert tensors(tmp_path / "mode") == tensors(tmp_path / "given")
    assert {h.effective_samples for h in given.history} == {9.0}


@pytest.mark.slow
def test_learned_weights_are_the_same_twice_and_after_a_kill_between_blocks(
    model: Path, gac: Finished, tmp_path: Path
) -> None:
    first = gac.artifact
    second = learned(model, tmp_path / "b", *GAC)
    assert second.manifest_digest == first.manifest_digest
    directory = RunDirectory(Path(shutil.copytree(gac.root, tmp_path / "c")))
    shutil.rmtree(directory.artifact)
    shutil.rmtree(directory.work / "polish")
    path = directory.work / "checkpoint.json"
    checkpoint = read_json(path, what="", hint="")
    order = sorted(checkpoint["steps"], key=lambda step: str(checkpoint["steps"][step]["file"]))
    assert len(order) >= 3, "ranges and at least two blocks"
    kept = order[:2]
    write_json(path, checkpoint | {"steps": {step: checkpoint["steps"][step] for step in kept}})
    assert calibrate(recipe(model, *GAC), directory).manifest_digest == first.manifest_digest


@pytest.mark.slow
def test_warm_starts_travel_from_block_to_block(samples: CalibrationSet) -> None:
    """What a stage learned beyond its prior is where the next one starts."""
    chosen = weighting(samples, "calibration.weighting.mode=gac", BOTH)
    theta = {"w": torch.linspace(-1, 1, 8, dtype=torch.float64)}
    still = StageLoss("block", theta, lambda p, rows: 0 * p["w"].sum() + torch.ones(len(rows)).double())
    losses = np.linspace(1, 2, len(chosen.split.training))
    before = np.linspace(-0.5, 0.5, len(losses))
    found = chosen.weigh("reconstruction", still, losses, seed=0, logits=before)
    cold = chosen.weigh("reconstruction", still, losses, seed=0)
    np.testing.assert_allclose(found.logits - cold.logits, before, atol=1e-9)


@pytest.mark.parametrize(
    "more",
    [("samples.validation_share=0",), ("samples.trajectories=1",)],
    ids=["nothing-held-out", "one-trajectory"],
)
def test_without_validation_rows_the_fallback_is_told(
    model: Path, tmp_path: Path, more: tuple[str, ...]
) -> None:
    notes: list[str] = []

    class Notes(SilentReporter):
        def note(self, text: str) -> None:
            notes.append(text)

    asked = recipe(model, *GAC, *more)
    artifact = calibrate(asked, RunDirectory(tmp_path), report=Notes())
    found = artifact.diagnostics
    assert found is not None
    for stage in found.stages:
        assert stage.mode == "uniform"
        assert set(stage.weights.tolist()) == {1.0}
        assert any("uniform" in n and "no validation samples" in n for n in stage.notes)
        assert stage.cosine_before is None
        assert stage.alignment is None
    assert all(h.notes for h in artifact.history)
    assert artifact.polish is not None
    assert artifact.polish.notes
    assert any("no validation samples" in n for n in notes)


@pytest.mark.parametrize("mode", ["gac", "relative"])
def test_one_timestep_is_enough(model: Path, tmp_path: Path, mode: str) -> None:
    artifact = learned(model, tmp_path, f"calibration.weighting.mode={mode}", BOTH, "samples.steps=1")
    assert artifact.diagnostics is not None
    for stage in artifact.diagnostics.stages:
        assert float(stage.weights.mean()) == pytest.approx(1, abs=1e-5)
        if mode == "gac":
            assert stage.mode == "mse"
            assert any("needs two groups" in n for n in stage.notes)


def test_weights_of_the_polish_alone_leave_the_blocks_as_uniform_ones_do(model: Path, tmp_path: Path) -> None:
    polish_only = "calibration.weighting.stages=[polish]"
    gac = learned(model, tmp_path / "gac", "calibration.weighting.mode=gac", polish_only)
    uniform = learned(model, tmp_path / "uniform", "calibration.weighting.mode=uniform", polish_only)
    assert gac.history == uniform.history
    assert gac.diagnostics is not None
    *blocks, polish = gac.diagnostics.stages
    assert {s.mode for s in blocks} == {"uniform"}
    assert all(set(s.weights.tolist()) == {1.0} for s in blocks)
    assert polish.mode == "gac"


def test_without_a_polish_nothing_of_it_is_recorded(model: Path, tmp_path: Path) -> None:
    artifact = learned(model, tmp_path, "calibration.polish.steps=0")
    assert artifact.polish is None
    assert artifact.parameters == {}
    assert artifact.diagnostics is not None
    assert artifact.diagnostics.stage("polish") is None
    assert set(artifact.diagnostics.error_sqnr_db) == {"nearest", "reconstruction"}


# -------------------------------------------------------------------------------------------- which work can be reused


@pytest.fixture(scope="module")
def key_of(model: Path) -> KeyOf:
    denoiser = load_float_denoiser(recipe(model).model)
    return lambda *more: blocks_key(
        recipe(model, "calibration.weighting.mode=gac", *more), denoiser, "0" * 64, None
    )


@pytest.mark.parametrize(
    "change",
    [
        "calibration.polish.steps=50",
        "calibration.polish.lr=1e-4",
        "calibration.polish.parameters=[biases]",
        "calibration.weighting.polish_iterations=7",
        "parity.images=3",
    ],
)
@pytest.mark.parametrize("stages", ["[polish]", "[reconstruction, polish]"])
def test_finished_blocks_count_under_another_polish(key_of: KeyOf, stages: str, change: str) -> None:
    asked = f"calibration.weighting.stages={stages}"
    assert key_of(asked, change) == key_of(asked)


@pytest.mark.parametrize(
    "change",
    [
        "calibration.weighting.mode=mse",
        "calibration.weighting.lambda_gm=0.5",
        "calibration.weighting.iterations=3",
        "calibration.objective=eps",
    ],
)
def test_finished_blocks_do_not_count_under_other_weights(key_of: KeyOf, change: str) -> None:
    assert key_of(BOTH, change) != key_of(BOTH)
    assert key_of("calibration.weighting.stages=[polish]", change) == key_of(
        "calibration.weighting.stages=[polish]"
    )


@pytest.mark.parametrize(
    "change",
    ["calibration.seed=1", "calibration.reconstruction.iterations=9", "calibration.weighting.groups=3"],
)
def test_finished_blocks_do_not_count_under_another_learning(key_of: KeyOf, change: str) -> None:
    assert key_of(change) != key_of()


# ------------------------------------------------------------------------------------------------------ priors, splits


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> CalibrationSet:
    return tiny_samples(tmp_path_factory.mktemp("samples"))


def weighting(samples: CalibrationSet, *more: str) -> Weighting:
    section: CalibrationSection = load_recipe("fashion-w4a8", more).calibration
    return Weighting(section, Split(samples, section.weighting.groups))


def test_a_split_knows_its_rows(samples: CalibrationSet) -> None:
    split = Split(samples, 5)
    assert sorted([*split.training, *split.held_out]) == list(range(len(samples)))
    assert len(split.validation_groups) == 5
    assert sorted(np.concatenate(split.validation_groups)) == sorted(split.held_out)
    noisiest = split.validation_groups[0]
    assert set(samples.timesteps[noisiest].tolist()) == {int(samples.timesteps.max())}


def test_a_stage_too_large_to_learn_takes_the_objective_s_weights(samples: CalibrationSet) -> None:
    section = load_recipe("fashion-w4a8", ["calibration.objective=sqnr"]).calibration
    split = Split(samples, 5)
    large = Weighting(section, split, too_large={"polish": "too much"})
    relative = weighting(samples, "calibration.objective=sqnr", "calibration.weighting.mode=relative")
    losses = np.linspace(1, 2, len(split.training))
    loss = StageLoss("polish", {}, lambda *_: torch.zeros(()))
    assert Weighting(section, split).is_learned("polish")
    assert not large.is_learned("polish")
    found = large.weigh("polish", loss, losses, seed=0)
    assert (found.mode, found.notes) == ("relative", ("too much",))
    np.testing.assert_array_equal(found.weights, relative.weigh("polish", loss, losses, seed=0).weights)
    fixed = load_recipe("fashion-w4a8", ["calibration.weighting.mode=uniform"]).calibration
    plain = Weighting(fixed, split, too_large={"polish": "too much"}).weigh("polish", loss, losses, seed=0)
    assert (plain.mode, plain.notes) == ("uniform", ())


def test_cosines_do_not_depend_on_how_many_rows_fit(samples: CalibrationSet) -> None:
    split = Split(samples, 2)
    assert max(map(len, split.validation_groups)) > 2
    latents = torch.from_numpy(samples.latents).flatten(1).double()
    theta = {"w": torch.linspace(-1, 1, latents.shape[1], dtype=torch.float64)}
    loss = StageLoss("polish", theta, lambda p, rows: (latents[torch.from_numpy(rows)] @ p["w"] - 1).pow(2))
    whole, parts = (group_cosines(loss, split, batch) for batch in (64, 2))
    assert whole is not None
    np.testing.assert_allclose(parts, whole, rtol=1e-6)


def test_given_weights_leave_no_room_for_others(samples: CalibrationSet) -> None:
    section = load_recipe("fashion-w4a8", ["calibration.weighting.mode=gac"]).calibration
    given = Weighting(section, Split(samples, 5), UniformWeights())
    assert not given.is_learned("polish")
    np.testing.assert_array_equal(given.start("polish", np.linspace(1, 2, 25)), np.ones(25))


def test_learned_stages_are_those_named(samples: CalibrationSet) -> None:
    bench: Bench = tiny_bench(
        samples, "calibration.weighting.mode=gac", "calibration.weighting.stages=[polish]"
    )
    assert bench.session.weighting.is_learned("polish")
    assert not bench.session.weighting.is_learned("reconstruction")
    for mode in ("uniform", "relative"):
        assert not weighting(samples, f"calibration.weighting.mode={mode}").is_learned("polish")
