"""The stage: reproducible, resumable at any moment, refusing what does not belong together."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from gacq_deploy.artifact.artifact import CalibrationArtifact
from gacq_deploy.calibration.cost.estimate import estimate_calibration
from gacq_deploy.calibration.stage import calibrate
from gacq_deploy.calibration.weighting.sample_weights import FixedWeights
from gacq_deploy.errors import (
    ArtifactError,
    BackendUnavailable,
    CalibrationError,
    RecipeError,
    ResourceError,
    UsageError,
)
from gacq_deploy.progress import SilentReporter
from gacq_deploy.recipe.load import load_recipe
from gacq_deploy.recipe.sections import Recipe
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.samples.calibration_set import load_samples, save_samples
from gacq_deploy.storage import room
from gacq_deploy.storage.digests import digest_file
from gacq_deploy.storage.documents import read_json
from gacq_deploy.storage.files import TEMP_PREFIX, write_json
from gacq_deploy.storage.lock import lock_directory
from tests.support.models.tiny import tiny_recipe
from tests.support.programs.warm_process import WarmProcess

SETTINGS = (
    "model.source=builtin:digits8",
    # four blocks, the last one behind a concatenation: most of the time goes by the block
    "quantization.rules=[{match: '*', bits: 8}, "
    "{match: '*', role: output, bits: 8, range: {method: mse, p: 2}}, {match: '*', role: weight, bits: 4}, "
    "{match: 'conv_*', ignore: true}, {match: '*time_emb*', ignore: true}, "
    "{match: 'down_blocks.*', ignore: true}, {match: 'up_blocks.[!0]*', ignore: true}, "
    "{match: 'up_blocks.0.[!r]*', ignore: true}, {match: 'up_blocks.0.resnets.[!0]*', ignore: true}]",
    "samples.trajectories=6",
    "samples.steps=5",
    "calibration.reconstruction.iterations=6",
    # learned so briefly, rounding gains only if it counts from the start
    "calibration.reconstruction.warmup=0",
    "calibration.weighting.mode=uniform",
    # as with the rounding: four steps lose, eight gain
    "calibration.polish.steps=8",
    "calibration.polish.save_every=2",
    "calibration.threads=1",
    "parity.probe={trajectories: 2, local_samples: 2}",
)


def recipe(*more: str) -> Recipe:
    return load_recipe("fashion-w4a8", [*SETTINGS, *more])


def files_of(root: Path) -> dict[str, str]:
    """Digest of every file that must be reproducible (the manifest holds times; its digest field does not)."""
    kinds = ("tensors", "probe", "diagnostics")
    names = ("samples.safetensors", *(f"artifact/{kind}.safetensors" for kind in kinds))
    digest = str(read_json(root / "artifact" / "manifest.json", what="", hint="")["digest"])
    return {n: digest_file(root / n) for n in names} | {"digest": digest}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDirectory, CalibrationArtifact]:
    directory = RunDirectory(tmp_path_factory.mktemp("runs") / "reference")
    return directory, calibrate(recipe(), directory)


class Recording(SilentReporter):
    """Remembers what a stage said."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.notes: list[str] = []

    def stage(self, name: str, total: int, costs: Sequence[float] = ()) -> None:
        self.stages.append(name)

    def advance(self, n: int = 1, **values: float) -> None:
        pass

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_every_planned_site_is_learned_and_first_and_last_layer_stay_float(
    finished: tuple[RunDirectory, CalibrationArtifact],
) -> None:
    _, artifact = finished
    assert set(artifact.params) == {e.site for e in artifact.plan}
    assert not {"conv_in", "conv_out"} & set(artifact.plan.modules)
    assert all(h.loss_end <= h.loss_start for h in artifact.history)
    assert any(h.loss_end < h.loss_start for h in artifact.history)
    assert all(h.effective_samples == pytest.approx(25) for h in artifact.history)
    ties: dict[str, set[float]] = {}
    for entry in artifact.plan.of_role("input"):
        ties.setdefault(entry.tie, set()).add(float(artifact.params[entry.site].scale))
    assert all(len(scales) == 1 for scales in ties.values())
    assert any(sum(e.tie == t for e in artifact.plan.of_role("input")) > 1 for t in ties)


def test_what_every_stage_took_and_gave_is_recorded_in_order(
    finished: tuple[RunDirectory, CalibrationArtifact],
) -> None:
    _, artifact = finished
    assert artifact.diagnostics is not None
    assert list(artifact.diagnostics.error_sqnr_db) == ["nearest", "reconstruction", "polish"]
    stages = artifact.build["stages"]
    assert set(stages) == {"nearest", "reconstruction", "polish"}
    assert all(stage["kept"] for stage in stages.values())
    worst = [stages[name]["sqnr_db"] for name in artifact.diagnostics.error_sqnr_db]
    assert worst == sorted(worst)


def test_stages_that_lose_by_the_gates_measure_are_undone(tmp_path: Path) -> None:
    losing = ("samples.seed=2", "calibration.reconstruction.warmup=0.2")
    nothing = ("samples.seed=2", "calibration.reconstruction.iterations=0", "calibration.polish.steps=0")
    said = Recording()
    learned = calibrate(recipe(*losing), tmp_path / "learned", report=said)
    nearest = calibrate(recipe(*nothing), tmp_path / "nearest")
    stages = learned.build["stages"]
    assert [stages[name]["kept"] for name in ("nearest", "reconstruction", "polish")] == [True, False, False]
    assert sorted(note.split()[0] for note in said.notes if "was undone" in note) == [
        "polish",
        "reconstruction",
    ]
    assert not any(block.kept for block in learned.history)
    assert learned.polish is not None
    assert not learned.polish.kept
    assert not nearest.history
    assert nearest.polish is None
    assert not learned.parameters
    for site, params in nearest.params.items():
        np.testing.assert_array_equal(params.scale, learned.params[site].scale)
        if params.codes is not None:
            np.testing.assert_array_equal(params.codes, learned.params[site].codes)


def test_the_probe_holds_the_models_own_answers(finished: tuple[RunDirectory, CalibrationArtifact]) -> None:
    _, artifact = finished
    probe = artifact.probe
    assert probe is not None
    assert {k: len(v) for k, v in probe.outputs.items()} == {
        "float": 10,
        "input_quant": 10,
        "output_quant": 10,
    }
    for site, tensor in probe.local["input_quant"].items():
        if site == "output":
            continue
        scale = next(float(p.scale) for s, p in artifact.params.items() if str(s) == site)
        codes = tensor / np.float32(scale)
        np.testing.assert_allclose(codes, codes.round(), atol=1e-3)
        assert codes.min() >= -128.001
        assert codes.max() <= 127.001
    assert {s.partition(":")[2] for s in probe.local["output_quant"]} - {""} == {"input", "output"}


def test_the_same_recipe_gives_the_same_bytes(
    finished: tuple[RunDirectory, CalibrationArtifact], tmp_path: Path
) -> None:
    calibrate(recipe(), RunDirectory(tmp_path))
    assert files_of(tmp_path) == files_of(finished[0].root)


def test_what_is_done_is_not_repeated(finished: tuple[RunDirectory, CalibrationArtifact]) -> None:
    report = Recording()
    again = calibrate(recipe("parity.images=7"), finished[0], report=report)
    assert again.manifest_digest == finished[1].manifest_digest
    assert report.stages == []
    assert report.notes == ["calibration is already done"]


def test_fresh_starts_over_and_arrives_at_the_same_artifact(
    finished: tuple[RunDirectory, CalibrationArtifact], tmp_path: Path
) -> None:
    directory = RunDirectory(tmp_path)
    other = ("calibration.seed=3", "calibration.reconstruction.iterations=1", "calibration.polish.steps=1")
    calibrate(recipe(*other), directory)
    report = Recording()
    calibrate(recipe(), directory, fresh=True, report=report)
    assert "collect samples" in report.stages
    assert files_of(tmp_path) == files_of(finished[0].root)


def test_fresh_learns_the_same_recipe_again(finished: tuple[RunDirectory, CalibrationArtifact]) -> None:
    directory, artifact = finished
    manifest = directory.artifact / "manifest.json"
    before = manifest.stat().st_ino
    report = Recording()
    again = calibrate(recipe(), directory, fresh=True, report=report)
    assert "reconstruct blocks" in report.stages
    assert manifest.stat().st_ino != before
    assert again.manifest_digest == artifact.manifest_digest


@pytest.mark.parametrize("name", ["tensors.safetensors", "manifest.json", "probe.safetensors"])
def test_a_damaged_artifact_is_made_again_from_the_finished_blocks(
    finished: tuple[RunDirectory, CalibrationArtifact], name: str
) -> None:
    directory, artifact = finished
    path = directory.artifact / name
    path.write_bytes(path.read_bytes() + b"x")
    report = Recording()
    again = calibrate(recipe(), directory, report=report)
    assert again.manifest_digest == artifact.manifest_digest
    assert "not usable and is made again" in report.notes[0]


def test_torch_keeps_its_threads(finished: tuple[RunDirectory, CalibrationArtifact]) -> None:
    before = torch.get_num_threads()
    calibrate(recipe(), finished[0])
    torch.set_num_threads(before + 1)
    try:
        calibrate(recipe(), finished[0])
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("key", ["samples.steps", "parity.steps", "runtime.steps"])
def test_more_steps_than_the_model_was_trained_with_are_refused_before_any_work(
    tmp_path: Path, key: str
) -> None:
    with pytest.raises(UsageError, match="2000 sampler steps: the model was trained with 1000"):
        calibrate(recipe(f"{key}=2000"), RunDirectory(tmp_path))
    with pytest.raises(UsageError, match="2000 sampler steps"):
        estimate_calibration(recipe(f"{key}=2000"))
    assert not (tmp_path / "samples.safetensors").exists()


CHILD = """
import os, signal, sys, threading
from pathlib import Path
from gacq_deploy.calibration.stage import calibrate
from gacq_deploy.recipe.load import load_recipe
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.progress import SilentReporter

root, place, steps, delay, *settings = sys.argv[1:]

class Alarm(SilentReporter):
    def stage(self, name, total, costs=()):
        self.name, self.done = name, 0

    def advance(self, n=1, **values):
        self.done += 1
        if (self.name, self.done) == (place, int(steps)):
            threading.Timer(float(delay), os.kill, (os.getpid(), signal.SIGKILL)).start()


calibrate(load_recipe('fashion-w4a8', settings), RunDirectory(Path(root)), report=Alarm())
"""
"""It sends the signal itself, from a thread, wherever it is then. One from outside may come late on a busy machine,
when all is done."""
PLACES = (("collect samples", 2), ("reconstruct blocks", 9), ("polish", 2))
"""Stage, and how many steps of it are done when the alarm is set: two of four blocks are learned (seven stay float),
and a state of the polish is about to be saved."""


def steps_in(folder: Path) -> set[str]:
    path = folder / "checkpoint.json"
    return set(read_json(path, what="checkpoint", hint="")["steps"]) if path.exists() else set()


@pytest.mark.slow
@pytest.mark.parametrize("kills", [3, pytest.param(27, marks=pytest.mark.soak)])
def test_killed_and_resumed_it_gives_the_same_bytes(
    finished: tuple[RunDirectory, CalibrationArtifact], warm_server: str, tmp_path: Path, kills: int
) -> None:
    """Each run is killed in its samples, between or inside blocks, and in the polish."""
    rng = np.random.default_rng(0)
    whole = steps_in(finished[0].work)
    for strike in range(kills):
        root = tmp_path / str(strike // len(PLACES))
        stage, steps = PLACES[strike % len(PLACES)]
        message = (str(root), stage, str(steps), str(rng.uniform(0.0005, 0.01)))
        with WarmProcess(warm_server, CHILD, *message, *SETTINGS) as child:
            assert child.wait(120) == -signal.SIGKILL, "the child ended before it could be killed"
        assert not (root / "artifact" / "manifest.json").exists()
        if stage == "reconstruct blocks":
            assert {"ranges"} < steps_in(root / "work") < whole
        if stage == "polish":
            assert steps_in(root / "work") == whole
            assert "polish-start" in steps_in(root / "work" / "polish")
            assert "polished" not in steps_in(root / "work" / "polish")
            calibrate(recipe(), RunDirectory(root))
            assert files_of(root) == files_of(finished[0].root)
            assert not list(root.rglob(f"{TEMP_PREFIX}*"))


def test_a_lost_artifact_is_rebuilt_from_finished_blocks(
    finished: tuple[RunDirectory, CalibrationArtifact], tmp_path: Path
) -> None:
    shutil.copytree(finished[0].root, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "artifact")
    calibrate(recipe(), RunDirectory(tmp_path / "run"))
    assert files_of(tmp_path / "run") == files_of(finished[0].root)


@pytest.mark.parametrize("half", [2, 4])
def test_resuming_in_the_middle_gives_the_same_bytes(
    finished: tuple[RunDirectory, CalibrationArtifact], tmp_path: Path, half: int
) -> None:
    """As if killed right after the ``half``-th step, the first or the last but one block: nothing later was written."""
    shutil.copytree(finished[0].root, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "artifact")
    shutil.rmtree(tmp_path / "run" / "work" / "polish")
    path = tmp_path / "run" / "work" / "checkpoint.json"
    checkpoint = read_json(path, what="", hint="")
    kept = dict(sorted(checkpoint["steps"].items(), key=lambda item: str(item[1]["file"]))[:half])
    write_json(path, checkpoint | {"steps": kept})
    calibrate(recipe(), RunDirectory(tmp_path / "run"))
    assert files_of(tmp_path / "run") == files_of(finished[0].root)


def test_interrupted_in_the_polish_it_gives_the_same_bytes(
    finished: tuple[RunDirectory, CalibrationArtifact], tmp_path: Path
) -> None:
    class Interrupting(Recording):
        steps = 0

        def advance(self, n: int = 1, **values: float) -> None:
            self.steps += self.stages[-1] == "polish"
            if self.steps == 3:
                raise KeyboardInterrupt

    directory = copy_of(finished, tmp_path / "run")
    shutil.rmtree(directory.work / "polish")
    with pytest.raises(KeyboardInterrupt):
        calibrate(recipe(), directory, report=Interrupting())
    done = read_json(directory.work / "polish" / "checkpoint.json", what="", hint="")["steps"]
    assert set(done) == {"polish-start", "polish-weights", "polish-00002"}
    assert not directory.artifact.exists()
    calibrate(recipe(), directory)
    assert files_of(directory.root) == files_of(finished[0].root)


def test_killed_in_the_polish_it_gives_the_same_bytes(
    finished: tuple[RunDirectory, CalibrationArtifact], tmp_path: Path
) -> None:
    directory = copy_of(finished, tmp_path / "run")
    path = directory.work / "polish" / "checkpoint.json"
    checkpoint = read_json(path, what="", hint="")
    del checkpoint["steps"]["polished"]
    assert "polish-00002" in checkpoint["steps"]
    write_json(path, checkpoint)
    report = Recording()
    calibrate(recipe(), directory, report=report)
    assert "polish" in report.stages
    assert files_of(directory.root) == files_of(finished[0].root)


def test_hand_made_weights_enter_per_block_and_change_only_from_there_on(
    finished: tuple[RunDirectory, CalibrationArtifact], tmp_path: Path
) -> None:
    directory, uniform = finished
    samples = load_samples(directory.samples_path).training
    # of the noisy steps, which the last bucket's error does not depend on: the blocks are kept
    tilt = np.where(samples.step < 2, 4.0, 0.1)
    name = uniform.history[2].name
    weighted = calibrate(recipe(), RunDirectory(tmp_path), weights=FixedWeights({name: tilt}, "hand"))
    earlier = [(a, b) for a, b in zip(uniform.history, weighted.history, strict=True)][:2]
    assert all(a == b for a, b in earlier)
    assert weighted.history[2].effective_samples < 0.6 * len(samples)
    assert weighted.polish is not None
    assert weighted.polish.effective_samples == pytest.approx(len(samples))
    assert weighted.manifest_digest != uniform.manifest_digest


def test_hand_made_weights_of_the_polish_leave_the_blocks_as_they_are(
    finished: tuple[RunDirectory, CalibrationArtifact], tmp_path: Path
) -> None:
    directory, uniform = finished
    tilt = np.where(load_samples(directory.samples_path).training.step >= 3, 4.0, 0.1)
    weighted = calibrate(recipe(), RunDirectory(tmp_path), weights=FixedWeights({"polish": tilt}, "hand"))
    assert weighted.history == uniform.history
    assert weighted.polish is not None
    assert weighted.polish.effective_samples < 0.6 * len(tilt)
    assert weighted.manifest_digest != uniform.manifest_digest


def test_another_recipe_is_refused_naming_what_differs(
    finished: tuple[RunDirectory, CalibrationArtifact],
) -> None:
    with pytest.raises(RecipeError, match=r"another recipe; it differs in .*calibration.seed") as caught:
        calibrate(recipe("calibration.seed=9"), finished[0])
    assert "another directory" in caught.value.hint


def test_another_polish_starts_from_the_same_blocks(
    finished: tuple[RunDirectory, CalibrationArtifact], tmp_path: Path
) -> None:
    directory = copy_of(finished, tmp_path / "run")
    blocks = (directory.work / "checkpoint.json").read_bytes()
    again = calibrate(recipe("calibration.polish.steps=0"), directory)
    assert again.polish is None
    assert (directory.work / "checkpoint.json").read_bytes() == blocks
    assert again.history == finished[1].history


def copy_of(finished: tuple[RunDirectory, CalibrationArtifact], target: Path) -> RunDirectory:
    shutil.copytree(finished[0].root, target)
    shutil.rmtree(target / "artifact")
    return RunDirectory(target)


def test_altered_samples_and_finished_blocks_are_refused(
    finished: tuple[RunDirectory, CalibrationArtifact], tmp_path: Path
) -> None:
    directory = copy_of(finished, tmp_path / "a")
    block = sorted(directory.work.glob("*block*"))[2]
    data = bytearray(block.read_bytes())
    data[-1] ^= 1
    block.write_bytes(data)
    with pytest.raises(ArtifactError, match="was altered"):
        calibrate(recipe(), directory)
    directory = copy_of(finished, tmp_path / "b")
    data = bytearray(directory.samples_path.read_bytes())
    data[-1] ^= 1
    directory.samples_path.write_bytes(data)
    with pytest.raises(ArtifactError, match="were altered"):
        calibrate(recipe(), directory)


def test_nan_samples_stop_before_any_work(
    finished: tuple[RunDirectory, CalibrationArtifact], tmp_path: Path
) -> None:
    directory = copy_of(finished, tmp_path / "a")
    samples = load_samples(directory.samples_path)
    samples.latents[3, 0, 0, 0] = np.nan
    save_samples(samples, directory.samples_path)
    record = read_json(directory.samples_record_path, what="", hint="")
    write_json(directory.samples_record_path, record | {"sha256": digest_file(directory.samples_path)})
    with pytest.raises(UsageError, match="NaN or Inf in 1 of 30 rows"):
        calibrate(recipe(), directory)


def test_a_loss_that_explodes_keeps_the_finished_blocks(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    with pytest.raises(CalibrationError, match=r"Block '.*': the loss is nan"):
        calibrate(recipe("calibration.reconstruction.lr_scale=1e30"), directory)
    assert not (directory.artifact / "manifest.json").exists()
    assert directory.samples_record_path.exists()
    assert "ranges" in steps_in(directory.work)


def test_a_disk_that_cannot_hold_it_is_refused_before_the_first_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "free_disk", lambda folder: (folder, 1000))
    directory = RunDirectory(tmp_path / "run")
    with pytest.raises(ResourceError, match="this calibration needs at least"):
        calibrate(recipe(), directory, foresee=lambda _: None)
    assert not directory.samples_path.exists()


def test_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    with lock_directory(tmp_path), pytest.raises(ResourceError, match="in use by process"):
        calibrate(recipe(), RunDirectory(tmp_path))


def test_rules_that_leave_everything_float_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="leave every layer float"):
        calibrate(recipe("quantization.rules=[{match: '*', ignore: true}]"), RunDirectory(tmp_path))


def test_a_device_that_is_not_here_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    recipe = tiny_recipe(str(tmp_path / "nowhere"), calibration={"device": "cuda:7"})
    with pytest.raises(BackendUnavailable, match="'cuda:7' was asked for"):
        calibrate(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()
