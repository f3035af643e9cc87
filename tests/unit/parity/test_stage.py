from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gacq_deploy.artifact.probe import Probe
from gacq_deploy.errors import ArtifactError, BackendUnavailable, RecipeError, UsageError
from gacq_deploy.parity import check_parity, load_report, rejudge
from gacq_deploy.parity.budget import hold_out
from gacq_deploy.progress import SilentReporter
from gacq_deploy.recipe.sections import ParitySection
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.storage.documents import read_json
from gacq_deploy.storage.files import write_json
from tests.support.artifacts.judged_run import make_run
from tests.support.artifacts.samplers import record_of
from tests.support.models.tiny import SCHEDULER
from tests.support.programs.engine_records import change_engine


class Recorder(SilentReporter):
    """Remembers the units of each stage: in all, and as they were told."""

    def __init__(self) -> None:
        self.stages: dict[str, tuple[int, list[int]]] = {}

    def stage(self, name: str, total: int, costs: Sequence[float] = ()) -> None:
        self.told: list[int] = []
        self.stages[name] = (total, self.told)

    def advance(self, n: int = 1, **values: float) -> None:
        self.told.append(n)


@pytest.fixture(scope="module")
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory, recorder: Recorder) -> RunDirectory:
    directory = make_run(tmp_path_factory.mktemp("judged"))
    report = check_parity(directory, engines=["ort-cpu"], threads=1, report=recorder)
    assert report, report.to_text()
    return directory


@pytest.fixture
def run(judged: RunDirectory, tmp_path: Path) -> RunDirectory:
    shutil.copytree(judged.root, tmp_path / "run")
    return RunDirectory(tmp_path / "run")


def test_the_report_says_what_was_judged(judged: RunDirectory) -> None:
    report = load_report(judged.parity_json)
    assert set(report.subject["files"]) == {"float.onnx", "int8.onnx", "int8.cpu.onnx"}
    assert {e.candidate for e in report.comparisons if e.evidence == "budget"} == {
        "int8.onnx@ort-cpu",
        "int8.cpu.onnx@ort-cpu",
    }
    assert all(e.engine.startswith("onnxruntime-") for e in report.comparisons if e.evidence == "local")
    assert len(report.trajectory["by_step"]["int8.onnx@ort-cpu"]) == 5 + 1
    assert report.noise_floor["int8.onnx@ort-cpu"]["rerun_max_abs"] == 0


@pytest.mark.usefixtures("judged")
def test_how_far_an_engine_is_is_told_row_by_row(recorder: Recorder) -> None:
    engines = {name: told for name, told in recorder.stages.items() if "@" in name}
    assert len(engines) > 1
    for total, told in engines.values():
        assert sum(told) == total
        assert max(told) <= total / 3


def test_new_thresholds_need_no_run(run: RunDirectory) -> None:
    before = run.parity_json.read_bytes()
    shutil.rmtree(run.work)
    assert rejudge(run, {})
    strict = rejudge(run, {"budget": {"image_psnr_db": 99.0}})
    assert not strict
    assert {name for e in strict.comparisons for name in e.failed} == {"image_psnr_db"}
    assert strict.protocol.budget.eps_sqnr_db == load_report(run.parity_json).protocol.budget.eps_sqnr_db
    assert rejudge(run, strict.protocol) == strict
    assert run.parity_json.read_bytes() == before


@pytest.mark.parametrize("changes", [{"images": 9}, {"local_rtol": 1e-3}, {"probe": {"trajectories": 5}}])
def test_what_decides_the_measurement_needs_a_run(run: RunDirectory, changes: Mapping[str, Any]) -> None:
    with pytest.raises(UsageError, match="decides what is measured"):
        rejudge(run, changes)


@pytest.mark.parametrize(
    "changes", [{"image_psnr": 3}, {"budget": {"psnr": 3}}, {"budget": {"eps_cosine": "high"}}]
)
def test_thresholds_are_validated(run: RunDirectory, changes: Mapping[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"parity\."):
        rejudge(run, changes)


def test_old_numbers_are_not_judged_for_another_graph(run: RunDirectory) -> None:
    run.int8_onnx.write_bytes(run.int8_onnx.read_bytes() + b"\0")
    with pytest.raises(ArtifactError, match=r"int8\.onnx"):
        rejudge(run, {})
    with pytest.raises(ArtifactError, match=r"int8\.onnx"):
        check_parity(run, engines=["ort-cpu"])


def test_an_export_of_another_artifact_is_stale(run: RunDirectory) -> None:
    manifest = run.artifact / "manifest.json"
    document = read_json(manifest, what="manifest", hint="")
    before = run.parity_json.read_bytes()
    write_json(manifest, {**document, "digest": "0" * 64})
    with pytest.raises(ArtifactError):
        check_parity(run, engines=["ort-cpu"])
    with pytest.raises(ArtifactError, match="stale"):
        rejudge(run, {})
    assert run.parity_json.read_bytes() == before


def test_without_an_export_there_is_nothing_to_judge(run: RunDirectory) -> None:
    shutil.rmtree(run.onnx)
    with pytest.raises(ArtifactError, match="export"):
        check_parity(run, engines=["ort-cpu"])


def test_an_engine_is_only_missing_when_it_was_asked_for(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_engine(monkeypatch, "openvino", backend="no_such_library:Engine")
    with pytest.raises(BackendUnavailable, match="openvino"):
        check_parity(run, engines=["ort-cpu", "openvino"])
    recipe = run.load_recipe()
    small = recipe.parity.model_copy(update={"images": 2, "steps": 2})
    recipe.model_copy(update={"parity": small}).save(run.recipe_path)
    report = check_parity(run, threads=1)
    assert {e.candidate.partition("@")[2] for e in report.comparisons if e.evidence == "local"} == {"ort-cpu"}


def test_an_unknown_engine_is_a_usage_error(run: RunDirectory) -> None:
    with pytest.raises(UsageError, match="warp-drive"):
        check_parity(run, engines=["warp-drive"])


def test_classes_come_in_turn() -> None:
    conditioning: dict[str, dict[str, Any]] = {
        "class_labels": {"dtype": "int64", "shape": [], "num_classes": 3},
        "embedding": {"dtype": "float32", "shape": [3]},
    }
    record = record_of(SCHEDULER, conditioning=conditioning)
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    held = hold_out(record, Probe({"embedding": rows}, {}, {}), ParitySection(images=5, steps=2), 4)
    assert held.conditions.positive["class_labels"].tolist() == [0, 1, 2, 0, 1]
    assert held.conditions.positive["class_labels"].dtype == np.int64
    np.testing.assert_array_equal(held.conditions.positive["embedding"], rows[[0, 1, 0, 1, 0]])
    assert held.seeds == tuple(range(700_000, 700_005))
