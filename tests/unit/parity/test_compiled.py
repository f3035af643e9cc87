"""Parity of engines that run nothing but what was compiled for them; ONNX Runtime stands in for the plan."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from gacq_deploy.backends.base import Engine, Feeds, HostEngine
from gacq_deploy.backends.trt import library as trt_library
from gacq_deploy.backends.trt.library import Device
from gacq_deploy.bench import run_bench
from gacq_deploy.build_trt.manifest import graph_digest
from gacq_deploy.build_trt.open import locate_baseline, locate_engine
from gacq_deploy.engines.open import open_engine
from gacq_deploy.errors import ArtifactError, BackendUnavailable, EngineError
from gacq_deploy.export.record import load_export
from gacq_deploy.inspection.verify import verify_run
from gacq_deploy.parity import check_parity, saved_commands
from gacq_deploy.parity import stage as check
from gacq_deploy.parity.comparisons import CompiledEngine
from gacq_deploy.parity.stage import rejudge, runnable_engines
from gacq_deploy.recipe.sections import StepPolicySection
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.spec import Array
from tests.support.artifacts.engine_folder import made_from, written
from tests.support.artifacts.judged_run import make_run

MOST = 3


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return make_run(tmp_path_factory.mktemp("compiled"))


class Limited(HostEngine):
    """A graph in ONNX Runtime that refuses more rows than its profile has, and may compute them wrongly."""

    def __init__(self, inner: Engine, seen: list[int], error: float) -> None:
        super().__init__(f"plan/{inner.label}", inner.inputs, inner.outputs)
        self.inner, self.seen, self.error = inner, seen, error

    @property
    def max_rows(self) -> int | None:
        return MOST

    def _run(self, feeds: Feeds) -> dict[str, Array]:
        rows = len(feeds["sample"])
        self.seen.append(rows)
        if rows > MOST:
            raise EngineError("no profile", "")
        results = self.inner.run(feeds)
        return {name: value + self.error * (rows == MOST) for name, value in results.items()}

    def _close(self) -> None:
        self.inner.__exit__(None, None, None)


def compiled(run: RunDirectory, seen: list[int], error: float = 0.0, key: str = "") -> Any:
    def of(_directory: RunDirectory, _library: str, **_: Any) -> CompiledEngine:
        def opened(file: str) -> Engine:
            return Limited(open_engine("ort-cpu", run.onnx / file, threads=1), seen, error)

        return CompiledEngine(opened, (1, 2, MOST), key)

    return of


def test_a_plan_is_judged_at_every_batch_it_was_built_for(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(check, "_compiled", compiled(run, seen))
    report = check_parity(run, engines=["ort-cpu", "tensorrt-rtx"], threads=1)
    mine = {e.candidate: e for e in report.comparisons if "tensorrt-rtx" in e.candidate}
    assert report, report.to_text()
    assert [name for name, e in mine.items() if e.evidence == "error"] == [
        f"int8.onnx@tensorrt-rtx batch {n}" for n in (1, 2, MOST)
    ]
    assert mine["int8.onnx@tensorrt-rtx"].evidence == "budget"
    assert mine["int8.onnx@tensorrt-rtx"].engine is not None
    assert mine["int8.onnx@tensorrt-rtx"].engine.startswith("plan/")
    assert not [e for e in mine.values() if e.evidence == "local"]
    assert {1, 2, MOST} <= set(seen)
    assert max(seen) == MOST
    assert report.noise_floor["int8.onnx@tensorrt-rtx batch 2"]["rerun_max_abs"] == 0


def test_outputs_at_every_batch_are_saved_for_polygraphy(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "_compiled", compiled(run, []))
    check_parity(run, engines=["tensorrt-rtx"], threads=1, save_polygraphy=tmp_path / "saved")
    assert {p.stem for p in (tmp_path / "saved/outputs").iterdir()} == {
        "float.onnx@ort-cpu", *(f"int8.onnx@tensorrt-rtx-batch-{n}" for n in (1, 2, MOST)),
    }  # fmt: skip
    (reduce,) = (c.line for c in saved_commands(tmp_path / "saved") if "debug reduce" in c.line)
    assert reduce.startswith("POLYGRAPHY_USE_TENSORRT_RTX=1 ")


def test_an_engine_that_is_wrong_at_one_batch_only_is_caught(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "_compiled", compiled(run, [], error=0.5))
    report = check_parity(run, engines=["tensorrt-rtx"], threads=1)
    failed = [e for e in report.comparisons if not e.passed and e.evidence == "error"]
    assert {e.candidate for e in failed} == {f"int8.onnx@tensorrt-rtx batch {MOST}"}
    assert {e.subject for e in failed} == {"int8.onnx@tensorrt-rtx"}
    assert not report


def test_a_verdict_holds_for_the_engine_that_was_judged(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = RunDirectory(shutil.copytree(run.root, tmp_path / "run"))
    digest = graph_digest(load_export(copy), "int8.onnx")
    judged = written(copy.root, made_from(digest))
    monkeypatch.setattr(check, "_compiled", compiled(copy, [], key=judged.name))
    report = check_parity(copy, engines=["tensorrt-rtx"], threads=1)
    assert report.engines == {"tensorrt-rtx": judged.name}
    assert rejudge(copy, {}).passed
    assert verify_run(copy)
    other = written(copy.root, made_from(digest, float_type="float32"))
    message = f"about tensorrt-rtx engine {judged.name}, {other.name} would run"
    with pytest.raises(ArtifactError, match=message):
        rejudge(copy, {})
    links = {link.name: link for link in verify_run(copy).links}
    assert (links["engines"].status, links["parity"].status) == ("ok", "fail")
    assert message in links["parity"].detail


def test_only_plans_that_this_gpu_runs_are_judged_unasked(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = RunDirectory(shutil.copytree(run.root, tmp_path / "run"))
    record = load_export(copy)
    monkeypatch.setattr(check, "current_device", lambda: Device("GPU", "8.9", 13000))
    assert runnable_engines(copy, record) == ()
    digest = graph_digest(record, "int8.onnx")
    written(copy.root, made_from(digest))
    assert runnable_engines(copy, record) == ("tensorrt-rtx",)
    written(copy.root, made_from(digest, options={"compute_capabilities": ("8.6",)}))
    assert runnable_engines(copy, record) == (), "the newest is for another GPU"
    monkeypatch.setattr(check, "current_device", lambda: None)
    assert runnable_engines(copy, record) == ()


def test_the_twin_is_the_one_of_the_same_options(run: RunDirectory, tmp_path: Path) -> None:
    copy = RunDirectory(shutil.copytree(run.root, tmp_path / "run"))
    record = load_export(copy)
    engine = made_from(graph_digest(record, "int8.onnx"))
    baseline = made_from(graph_digest(record, "float.onnx"), graph="float.onnx")
    written(copy.root, engine)
    written(copy.root, baseline.model_copy(update={"float_type": "float32"}))
    plan = locate_engine(copy, "tensorrt-rtx")
    with pytest.raises(ArtifactError, match="has no float baseline"):
        locate_baseline(copy, plan)
    folder = written(copy.root, baseline)
    assert locate_baseline(copy, plan).folder == folder


def test_without_a_plan_nothing_is_judged(run: RunDirectory, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds no tensorrt engine"):
        check_parity(run, engines=["tensorrt"], threads=1)


def test_without_a_gpu_a_plan_is_refused_before_anything_is_measured(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = RunDirectory(shutil.copytree(run.root, tmp_path / "run"))
    written(copy.root, made_from(graph_digest(load_export(copy), "int8.onnx")))
    copy.parity_json.unlink(missing_ok=True)
    monkeypatch.setattr(trt_library, "current_device", lambda: None)
    for command in (check_parity, run_bench):
        with pytest.raises(BackendUnavailable, match="no NVIDIA GPU"):
            command(copy, engines=["tensorrt-rtx"])
    assert not copy.parity_json.exists()


def test_a_missing_twin_is_said_before_anything_is_measured(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = RunDirectory(shutil.copytree(run.root, tmp_path / "run"))
    recipe = copy.load_recipe()
    mixed = {"steps": recipe.parity.steps, "step_policy": StepPolicySection(float_steps=1)}
    runtime = recipe.runtime.model_copy(update=mixed)
    recipe.model_copy(update={"runtime": runtime}).save(copy.recipe_path)
    written(copy.root, made_from(graph_digest(load_export(copy), "int8.onnx")))
    monkeypatch.setattr(trt_library, "current_device", lambda: Device("GPU", "8.6", 13000))
    monkeypatch.setattr(check, "measure_comparisons", lambda *_: pytest.fail("measured"))
    with pytest.raises(ArtifactError, match=r"holds no tensorrt-rtx engine of float\.onnx"):
        check_parity(copy, engines=["tensorrt-rtx"])
