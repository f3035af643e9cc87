from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gacq_deploy.artifact.artifact import CalibrationArtifact, load_artifact
from gacq_deploy.calibration.stage import calibrate
from gacq_deploy.errors import ArtifactError, UsageError
from gacq_deploy.export.record import read_record
from gacq_deploy.export.stage import export_onnx
from gacq_deploy.graph.files import read_graph
from gacq_deploy.lint.lint import errors_in, lint_file
from gacq_deploy.progress import SILENT, SilentReporter
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.sensitivity import (
    Request,
    SensitivityReport,
    SensitivitySettings,
    load_sensitivity,
    measure_sensitivity,
)
from gacq_deploy.sensitivity.measure import Meter, states_of
from gacq_deploy.spec import Site, TensorParams
from tests.support.artifacts.left_float import leave_float
from tests.support.artifacts.retrained import retrained_artifact

pytestmark = pytest.mark.slow
ONE_THREAD = SensitivitySettings(threads=1, states=10)
QUICK = SensitivitySettings(graph="int8.onnx", threads=1, states=10)
NO_SEARCH = Request(min_sqnr=-100)


class _Recorder(SilentReporter):
    """Remembers how much was announced and done."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int]] = []
        self.done: Counter[str] = Counter()
        self.notes: list[str] = []

    def stage(self, name: str, total: int, costs: Sequence[float] = ()) -> None:
        self.stages.append((name, total))

    def advance(self, n: int = 1, **values: float) -> None:
        self.done[self.stages[-1][0] if self.stages else ""] += n

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def study(run: RunDirectory) -> SensitivityReport:
    return measure_sensitivity(run, request=Request(max_drop=0, max_float=2), settings=ONE_THREAD)


def _copy(run: RunDirectory, target: Path) -> RunDirectory:
    return RunDirectory(Path(shutil.copytree(run.root, target)))


def _again(run: RunDirectory, artifact: CalibrationArtifact) -> None:
    """Put another artifact in its place and export it."""
    shutil.rmtree(run.artifact)
    artifact.save(run.artifact)
    export_onnx(run)


def test_every_planned_module_is_ranked(study: SensitivityReport, run: RunDirectory) -> None:
    planned = load_artifact(run.artifact).plan.modules
    assert sorted(m.module for m in study.modules) == sorted(planned)
    worst = study.worst_bucket
    shares = np.array([m.share for m in study.modules])
    assert list(shares[:, worst]) == sorted(shares[:, worst], reverse=True)
    np.testing.assert_allclose(shares.sum(axis=0), 1)
    assert len(study.buckets) == len(study.quantized_db) == 2
    assert study.buckets[0].timestep_min > study.buckets[1].timestep_max
    # nothing was retrained: without quantizers it is the float model
    assert min(study.unquantized_db) > 90
    for found in study.modules:
        assert {"weight", "input"} <= set(found.role_db) <= {"weight", "input", "output"}
        assert min(found.alone_db) > min(study.quantized_db) - 3
        np.testing.assert_allclose(np.subtract(found.left_float_db, found.gain_db), study.quantized_db)


def test_the_graph_that_is_furthest_from_float_is_ranked_and_all_are_judged(study: SensitivityReport) -> None:
    before = {name: min(levels) for name, levels in study.proposal.before_db.items()}
    assert set(before) == {"int8.onnx", "int8.cpu.onnx"}
    assert before[study.graph] == min(before.values())


def test_what_was_saved_is_loaded(study: SensitivityReport, run: RunDirectory) -> None:
    assert load_sensitivity(run) == study
    document = json.loads(run.sensitivity_json.read_text())
    assert document["schema"] == "gacq-deploy/sensitivity/1"
    assert document["subject"]["artifact_sha256"] == load_artifact(run.artifact).manifest_digest
    assert {k: v for k, v in document.items() if k != "digest"} == study.document()


def test_an_altered_report_is_refused(study: SensitivityReport, run: RunDirectory, tmp_path: Path) -> None:
    copy = _copy(run, tmp_path / "run")
    document = json.loads(copy.sensitivity_json.read_text())
    copy.sensitivity_json.write_text(json.dumps({**document, "graph": "int8.onnx "}))
    with pytest.raises(ArtifactError, match=r"sensitivity\.json was altered"):
        load_sensitivity(copy)


def test_the_same_again_gives_the_same(study: SensitivityReport, run: RunDirectory, tmp_path: Path) -> None:
    copy = _copy(run, tmp_path / "run")
    again = measure_sensitivity(copy, request=Request(max_drop=0, max_float=2), settings=ONE_THREAD)
    assert again == study


@pytest.fixture(scope="module")
def beyond_reach(
    run: RunDirectory, tmp_path_factory: pytest.TempPathFactory
) -> tuple[SensitivityReport, _Recorder]:
    """A study that tries all it may, and what it said."""
    report, copy = _Recorder(), _copy(run, tmp_path_factory.mktemp("beyond") / "run")
    request = Request(min_sqnr=200, max_float=2)
    return measure_sensitivity(copy, request=request, settings=QUICK, report=report), report


def test_what_is_announced_is_done(beyond_reach: tuple[SensitivityReport, _Recorder]) -> None:
    study, report = beyond_reach
    assert [report.done[name] for name, _ in report.stages] == [total for _, total in report.stages]
    assert study.engine_runs == sum(total for _, total in report.stages)
    assert f"{report.stages[0][1]} engine runs over 10 of 20 probe states" in report.notes[0]


@pytest.fixture(scope="module")
def spoiled(run: RunDirectory, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDirectory, str]:
    """The run with one layer's input scale 30 times too large, and the layer's name."""
    copy = _copy(run, tmp_path_factory.mktemp("spoiled") / "run")
    artifact = load_artifact(copy.artifact)
    ties = Counter(e.tie for e in artifact.plan)
    bad = next(e for e in artifact.plan.of_role("input") if ties[e.tie] == 1 and "conv2" in e.site.module)
    scale = artifact.params[bad.site].scale * np.float32(30)
    _again(copy, replace(artifact, params={**artifact.params, bad.site: TensorParams(scale)}))
    return copy, bad.site.module


def test_a_bad_layer_ranks_first_and_is_left_float(
    spoiled: tuple[RunDirectory, str], study: SensitivityReport
) -> None:
    directory, bad = spoiled
    found = measure_sensitivity(
        directory, request=Request(min_sqnr=min(study.quantized_db) - 3), settings=QUICK
    )
    first = found.modules[0]
    assert first.module == bad
    assert first.share[found.worst_bucket] > 0.9
    assert min(first.role_db["input"]) < min(first.role_db["weight"]) - 10
    assert first.worst_gain_db == max(m.worst_gain_db for m in found.modules)
    assert found.proposal.reached
    assert found.proposal.modules == (bad,)
    assert min(found.proposal.before_db["int8.onnx"]) < found.proposal.target_db


def test_the_proposal_is_what_a_recipe_with_these_lines_gives(
    study: SensitivityReport, run: RunDirectory, tmp_path: Path
) -> None:
    proposal = study.proposal
    assert proposal.modules
    recipe = leave_float(run.load_recipe(), proposal.modules)
    fresh = RunDirectory(tmp_path / "fresh")
    calibrate(recipe, fresh)
    export_onnx(fresh)
    modules = load_artifact(fresh.artifact).plan.modules
    assert set(modules) == {m.module for m in study.modules} - set(proposal.modules)
    probe = load_artifact(run.artifact).probe
    assert probe is not None
    meter, states = Meter(run.load_recipe().runtime.batch, 1, SILENT), states_of(probe, 2)
    for file, levels in proposal.after_db.items():
        assert meter.levels(read_graph(fresh.onnx / file), states) == levels
    assert not errors_in(lint_file(fresh.int8_onnx, target="tensorrt"))
    assert proposal.lint_errors == ()


def test_a_target_out_of_reach_gives_the_best_found(
    beyond_reach: tuple[SensitivityReport, _Recorder],
) -> None:
    found, _ = beyond_reach
    proposal = found.proposal
    assert not found
    assert not proposal.reached
    assert len(proposal.steps) == proposal.max_float == 2
    best = max([min(proposal.before_db["int8.onnx"]), *(s.worst_db for s in proposal.steps)])
    assert min(proposal.after_db["int8.onnx"]) == best
    assert len(proposal.rules) == len(proposal.modules)


@pytest.fixture(scope="module")
def many_buckets(run: RunDirectory, tmp_path_factory: pytest.TempPathFactory) -> SensitivityReport:
    """A study that asks for more buckets than there are timesteps, of a graph that is good enough."""
    copy = _copy(run, tmp_path_factory.mktemp("buckets") / "run")
    return measure_sensitivity(copy, request=NO_SEARCH, settings=replace(QUICK, buckets=99))


def test_a_graph_that_is_good_enough_needs_nothing(many_buckets: SensitivityReport) -> None:
    found = many_buckets
    assert found
    assert found.proposal.modules == found.proposal.steps == ()
    assert found.proposal.before_db == found.proposal.after_db


def test_a_drop_is_measured_from_the_best_of_the_search(study: SensitivityReport) -> None:
    proposal = study.proposal
    tried = [min(map(min, proposal.before_db.values())), *(s.worst_db for s in proposal.steps)]
    assert proposal.target_db == max(tried)
    assert min(map(min, proposal.after_db.values())) == max(tried)


def test_the_default_target_is_the_gate_and_a_margin(run: RunDirectory, tmp_path: Path) -> None:
    found = measure_sensitivity(
        _copy(run, tmp_path / "run"), request=Request(max_float=0), settings=QUICK
    ).proposal
    assert (found.asked, found.asked_db) == ("budget", run.load_recipe().parity.budget.eps_sqnr_db)
    assert found.target_db == found.asked_db + 1


def test_retrained_parameters_are_no_layers_error(run: RunDirectory, tmp_path: Path) -> None:
    copy = _copy(run, tmp_path / "run")
    _again(copy, retrained_artifact(copy))
    found = measure_sensitivity(copy, request=NO_SEARCH, settings=QUICK)
    assert max(found.unquantized_db) < 60
    # each layer is compared with the retrained graph, not with the float model
    assert max(m.alone_db[0] for m in found.modules) > max(found.unquantized_db)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (SensitivitySettings(graph="int8.trt.onnx"), "int8.onnx, int8.cpu.onnx"),
        (SensitivitySettings(buckets=0), "0 timestep buckets"),
        (SensitivitySettings(states=1), "empty"),
    ],
    ids=["graph", "buckets", "states"],
)
def test_wrong_settings_are_refused(run: RunDirectory, settings: SensitivitySettings, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        measure_sensitivity(run, settings=settings)


def test_more_buckets_than_timesteps_become_one_a_timestep(many_buckets: SensitivityReport) -> None:
    found = many_buckets
    assert [b.timestep_max for b in found.buckets] == [b.timestep_min for b in found.buckets]
    assert len(found.buckets) == len(found.modules[0].alone_db) == 5


def test_an_artifact_without_probe_is_refused(run: RunDirectory, tmp_path: Path) -> None:
    copy = _copy(run, tmp_path / "run")
    artifact = load_artifact(copy.artifact)
    shutil.rmtree(copy.artifact)
    digest = replace(artifact, probe=None).save(copy.artifact)
    _claim(copy, digest)
    with pytest.raises(ArtifactError, match="holds no probe") as caught:
        measure_sensitivity(copy)
    assert "calibrate" in caught.value.hint


def _claim(run: RunDirectory, digest: str) -> None:
    """Let the export record name another artifact."""
    read_record(run).model_copy(update={"artifact_sha256": digest}).save(run.onnx_manifest)


def test_a_stale_export_is_refused(run: RunDirectory, tmp_path: Path) -> None:
    copy = _copy(run, tmp_path / "run")
    artifact = load_artifact(copy.artifact)
    site = artifact.plan.of_role("input")[0].site
    doubled = TensorParams(artifact.params[site].scale * np.float32(2))
    shutil.rmtree(copy.artifact)
    replace(artifact, params={**artifact.params, Site(site.module, "input"): doubled}).save(copy.artifact)
    with pytest.raises(ArtifactError, match="stale"):
        measure_sensitivity(copy)
