"""Does `list` say what lies in each run, and a next command that is right?"""

from __future__ import annotations

import json
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from gacq_deploy.inspection.state import state_of
from gacq_deploy.parity.report import load_report
from gacq_deploy.recipe.load import load_recipe
from gacq_deploy.recipe.presets import PRESETS, preset_of
from gacq_deploy.report import write_report
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.storage.lock import lock_directory
from tests.support.programs.commands import invoke


def _listed(folder: Path, code: int = 0) -> Any:
    done = invoke(["list", str(folder), "--json"])
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


def _statuses(run: Path) -> dict[str, str]:
    return {stage.name: stage.status for stage in state_of(RunDirectory(run)).stages}


def test_runs_are_found_by_path_with_the_command_that_each_needs(finished_run: Path, tmp_path: Path) -> None:
    new, done = tmp_path / "a" / "my run", tmp_path / "b"
    new.mkdir(parents=True)
    shutil.copy(finished_run / "recipe.yaml", new)
    shutil.copytree(finished_run, done)
    first, second = _listed(tmp_path)["runs"]
    assert (first["directory"], second["directory"]) == (str(new), str(done))
    assert shlex.split(first["next"]) == [
        "gacq-deploy", "calibrate", "-r", str(new / "recipe.yaml"), "-o", str(new),
    ]  # fmt: skip
    assert second["next"] == f"gacq-deploy bench {done}"
    assert second["recipe"] == "tiny"
    assert second["bytes"] == sum(p.stat().st_size for p in done.rglob("*") if p.is_file())
    shown = invoke(["list", str(tmp_path)]).stdout
    assert "samples, calibrated, exported, parity passed" in shown
    assert "nothing yet" in shown
    assert f"\nNext: {first['next']}\nNext: {second['next']}\n" in shown, "unfolded"


def test_a_run_itself_is_listed(finished_run: Path) -> None:
    (run,) = _listed(finished_run)["runs"]
    assert run["directory"] == str(finished_run)
    states = {stage["name"]: (stage["status"], stage["detail"]) for stage in run["stages"]}
    assert states["parity"] == ("done", "parity passed")
    assert states["engines"] == states["report"] == ("absent", "")


def test_a_failed_parity_leads_to_what_explains_it(run_copy: Path) -> None:
    text = (run_copy / "recipe.yaml").read_text()
    (run_copy / "recipe.yaml").write_text(text.replace("image_psnr_db: 10.0", "image_psnr_db: 99.0"))
    assert _statuses(run_copy)["parity"] == "stale", "the recipe asks for other thresholds than judged"
    run = RunDirectory(run_copy)
    load_report(run.parity_json).under(run.load_recipe().parity).save(run.parity_json)
    state = state_of(run)
    assert "parity FAILED" in state.reached
    assert state.next_words == ("sensitivity", str(run_copy))
    run.report_html.write_text("<p>")
    os.utime(run.report_html, (1, 1))
    assert _statuses(run_copy)["report"] == "stale"


def test_a_page_is_of_its_records_whatever_times_a_copy_gave_them(run_copy: Path) -> None:
    write_report(RunDirectory(run_copy), images=False)
    assert _statuses(run_copy)["report"] == "done"
    os.utime(run_copy / "report.html", (1, 1))
    assert _statuses(run_copy)["report"] == "done"
    (run_copy / "engines").mkdir()
    (run_copy / "engines" / "order.json").write_text("{}")
    assert _statuses(run_copy)["report"] == "stale", "another engine runs than the page says"


def test_what_is_stale_or_damaged_is_said_with_the_reason(run_copy: Path) -> None:
    graph = run_copy / "onnx" / "int8.onnx"
    graph.write_bytes(graph.read_bytes() + b" ")
    done = invoke(["list", str(run_copy)])
    assert f"{run_copy}: parity is stale: {graph} is not the file that it is about" in done.stdout
    graph.unlink()
    (run_copy / "artifact" / "manifest.json").write_text("{")
    states = _statuses(run_copy)
    assert states["artifact"] == states["graphs"] == states["parity"] == "damaged"
    assert state_of(RunDirectory(run_copy)).following == "artifact"


@pytest.mark.parametrize("content", [b"name: [", b"\xff\xfe\x00", b""], ids=repr)
def test_a_recipe_that_was_spoiled_is_to_be_mended_first(run_copy: Path, content: bytes) -> None:
    (run_copy / "recipe.yaml").write_bytes(content)
    state = state_of(RunDirectory(run_copy))
    assert [(stage.name, stage.status) for stage in state.stages] == [("recipe", "damaged")]
    assert state.next_words == ("recipes", "validate", f"{run_copy}/recipe.yaml")


def test_a_run_that_is_worked_in_names_the_process(run_copy: Path) -> None:
    with lock_directory(run_copy):
        (run,) = _listed(run_copy)["runs"]
    assert (run["holder"], run["next"]) == (str(os.getpid()), "")


def test_an_empty_folder_says_what_to_do(tmp_path: Path) -> None:
    done = invoke(["list", str(tmp_path)])
    assert done.exit_code == 0
    assert f"No run lies in {tmp_path}." in done.stdout
    assert "gacq-deploy quickstart" in done.stdout
    assert _listed(tmp_path)["runs"] == []


def test_a_missing_folder_is_refused_and_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    error = json.loads(invoke(["list", "--json"]).stdout)["error"]
    assert "The folder runs is not there" in error["message"]
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    assert "is a file" in _listed(tmp_path / "file", code=2)["error"]["message"]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_known_by_its_effort(preset: str) -> None:
    assert preset_of(load_recipe("fashion-w8a8", preset=preset)) == preset
    assert preset_of(load_recipe("fashion-w8a8", ["samples.trajectories=5"], preset=preset)) is None
