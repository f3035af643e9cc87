"""What `inspect` and `verify` say about an artifact with retrained parameters and diagnostics."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gacq_deploy.artifact.artifact import load_artifact
from gacq_deploy.artifact.records import BlockRecord, PolishRecord
from gacq_deploy.errors import ArtifactError
from gacq_deploy.inspection.artifact import inspect_artifact
from gacq_deploy.inspection.verify import Link, verify_run
from gacq_deploy.models.source import load_float_denoiser
from gacq_deploy.parity.report import assemble, measured
from gacq_deploy.recipe.sections import ParitySection
from gacq_deploy.report.stage import write_report
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.storage.sealed import write_sealed
from tests.support.artifacts.diagnostics import BLOCKS, example_diagnostics
from tests.support.artifacts.retrained import RETRAINED, retrained
from tests.support.artifacts.sensitivity import example_study
from tests.support.models.tiny import tiny_run
from tests.support.programs.commands import invoke


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """What calibration leaves: a run whose artifact holds everything an artifact can hold."""
    directory = tiny_run(tmp_path)
    blocks = [
        BlockRecord(
            name=name,
            sites=4,
            loss_start=0.5,
            loss_end=0.25,
            kept=name != BLOCKS[0],
            effective_samples=90.5,
            notes=("clipped at 10",),
        )
        for name in BLOCKS
    ]
    polish = PolishRecord(
        steps=200,
        loss_start=0.75,
        loss_end=0.5,
        kept=True,
        parameters=("activation_steps", "biases"),
        objective="eps",
        effective_samples=77.25,
        notes=("weights fell back to uniform",),
    )
    artifact = replace(
        load_artifact(directory.artifact),
        history=tuple(blocks),
        polish=polish,
        parameters=retrained(load_float_denoiser(directory.load_recipe().model)),
        diagnostics=example_diagnostics(),
    )
    artifact.save(directory.artifact)
    return directory


def test_inspection_holds_everything(run: RunDirectory) -> None:
    document = json.loads(json.dumps(inspect_artifact(run.root).document()))
    assert [p["name"] for p in document["parameters"]] == sorted(RETRAINED)
    assert all(p["value_min"] < p["value_max"] and p["shape"] == [16] for p in document["parameters"][1:])
    assert document["polish"]["effective_samples"] == 77.25
    assert document["blocks"][0]["effective_samples"] == 90.5
    assert document["blocks"][0]["notes"] == ["clipped at 10"]
    assert [s["stage"] for s in document["stages"]] == [*BLOCKS, "polish"]
    assert document["stages"][0]["mode"] == "gac"
    assert 0 < document["stages"][0]["weight_min"] < 1 < document["stages"][0]["weight_max"]
    assert set(document["error_sqnr_db"]) == {"nearest", "reconstruction", "polish"}
    assert len(document["error_sqnr_db"]["polish"]) == len(document["error_timesteps"]) == 10


def test_the_command_shows_polish_parameters_and_notes(run: RunDirectory) -> None:
    shown = invoke(["inspect", str(run.root), "--sites", "mid_block*:weight"]).stdout
    assert "retrained parameters: 4 biases, 1 norm weights" in shown
    assert "activation_steps, biases" in shown
    assert "77.2" in shown
    assert shown.count("90.5") == len(BLOCKS)
    assert "no, nearest rounding was better" in shown
    assert f"note, {BLOCKS[0]}: clipped at 10" in shown
    assert shown.count("weights fell back to uniform") == 1
    assert "gac" in shown


def test_an_artifact_without_all_that_is_shown_as_before(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    shown = invoke(["inspect", str(run.root)]).stdout
    assert "retrained parameters: 0 biases, 0 norm weights" in shown
    assert "polish" not in shown
    document = inspect_artifact(run.root).document()
    assert document["polish"] is None
    assert document["stages"] == document["parameters"] == ()


def test_verify_vouches_for_the_diagnostics(run: RunDirectory) -> None:
    report = verify_run(run)
    assert report
    link = next(link for link in report.links if link.name == "artifact")
    assert "5 retrained parameters" in link.detail
    path = run.artifact / "diagnostics.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    report = verify_run(run)
    assert [link.name for link in report.links if link.status == "fail"] == ["artifact"]
    with pytest.raises(ArtifactError, match=r"diagnostics\.safetensors was altered"):
        inspect_artifact(run.root)
    (run.artifact / "manifest.json").unlink()
    link = next(link for link in verify_run(run).links if link.name == "artifact")
    assert link.status == "fail"
    assert "diagnostics.safetensors" in link.detail


def test_numbers_are_those_of_the_artifact(run: RunDirectory) -> None:
    artifact, views = load_artifact(run.artifact), inspect_artifact(run.root).parameters
    for view in views:
        value = artifact.parameters[view.name].value
        assert (view.value_min, view.value_max) == (float(np.min(value)), float(np.max(value)))


def _sensitivity_link(run: RunDirectory, subject: dict[str, object]) -> Link:
    write_sealed(run.sensitivity_json, example_study("", subject=subject).document())
    return next(link for link in verify_run(run).links if link.name == "sensitivity")


def test_verify_vouches_for_a_sensitivity_report_of_this_artifact(run: RunDirectory) -> None:
    digest = load_artifact(run.artifact).manifest_digest
    link = _sensitivity_link(run, {"artifact_sha256": digest, "files": {}})
    assert (link.status, link.detail) == ("ok", "measured on this artifact")
    run.sensitivity_json.unlink()
    assert "absent" in {link.status for link in verify_run(run).links if link.name == "sensitivity"}


@pytest.mark.parametrize("files", [{}, {"int8.onnx": "0" * 64}], ids=["artifact", "graph"])
def test_verify_finds_a_stale_sensitivity_report(run: RunDirectory, files: dict[str, str]) -> None:
    digest = load_artifact(run.artifact).manifest_digest if files else "0" * 64
    link = _sensitivity_link(run, {"artifact_sha256": digest, "files": files})
    assert link.status == "fail"
    assert "is stale" in link.detail
    assert f"gacq-deploy sensitivity {run.root}" in link.hint


def _link(run: RunDirectory, name: str) -> Link:
    return next(link for link in verify_run(run).links if link.name == name)


def test_verify_does_not_call_a_failed_parity_ok(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = measured("budget", "float.onnx", "int8.onnx", {"eps_sqnr_db": 1.0})
    report = assemble((failed,), ParitySection(), trajectory={}, noise_floor={}, subject={})
    monkeypatch.setattr(type(report), "why_stale", lambda *_, **__: None)
    assert not report
    report.save(run.parity_json)
    link = _link(run, "parity")
    assert link.status == "warning"
    assert "did not pass: 6 of 6 gates failed" in link.detail
    assert f"gacq-deploy report {run.root}" in link.hint
    assert verify_run(run), "every file is what was written"
    done = invoke(["verify", str(run.root)])
    assert done.exit_code == 0
    assert "But parity did not pass: 6 of 6 gates failed." in " ".join(done.stdout.split())


def test_verify_says_whether_the_page_shows_what_the_run_holds(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _link(run, "report").status == "absent"
    for images in (True, False):
        write_report(run, images=images)
        assert _link(run, "report").status == "ok"
    monkeypatch.chdir(run.root.parent)
    assert _link(RunDirectory(run.root.name), "report").status == "ok", "from wherever it is looked at"
    digest = load_artifact(run.artifact).manifest_digest
    assert _sensitivity_link(run, {"artifact_sha256": digest, "files": {}}).status == "ok"
    link = _link(run, "report")
    assert link.status == "warning"
    assert "earlier state" in link.detail
    assert f"gacq-deploy report {run.root}" in link.hint
    assert verify_run(run)
    write_report(run)
    assert _link(run, "report").status == "ok"


@pytest.mark.parametrize("text", ["", "{}", "[]", "altered"], ids=["empty", "object", "list", "altered"])
def test_verify_finds_a_damaged_sensitivity_report(run: RunDirectory, text: str) -> None:
    digest = load_artifact(run.artifact).manifest_digest
    _sensitivity_link(run, {"artifact_sha256": digest, "files": {}})
    written = json.loads(run.sensitivity_json.read_text())
    run.sensitivity_json.write_text(json.dumps({**written, "engine": "other"}) if text == "altered" else text)
    report = verify_run(run)
    link = next(link for link in report.links if link.name == "sensitivity")
    assert not report
    assert link.status == "fail"
    assert f"gacq-deploy sensitivity {run.root}" in link.hint
