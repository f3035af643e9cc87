"""An engine that another package adds: every command takes it, in a process that knows nothing else of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.programs.commands import ROOT, child_environment
from tests.support.programs.engine_records import install_package

PACKAGE = """
from gacq_deploy.backends.ort import OrtCpuEngine
from gacq_deploy.engines import EngineRecord

class Engine(OrtCpuEngine):
    @property
    def label(self):
        return f"added to {super().label}"

def why_unfit(name, graph):
    return ("it is Monday", "Wait.") if TOO_EARLY else None

TOO_EARLY = __import__("os").environ.get("TOO_EARLY")
RECORD = EngineRecord(
    name="added",
    backend="gacq_added_engine:Engine",
    install="pip install gacq-added-engine",
    graphs=("int8.onnx",),
    unfit="gacq_added_engine:why_unfit",
)
"""
# each command as a user types it, then the denoiser as a pipeline takes it
PROGRAM = """
import json, sys
from pathlib import Path
from click.testing import CliRunner
from gacq_deploy_cli.main import cli

def command(*arguments):
    done = CliRunner().invoke(cli, [*arguments, "--json"], catch_exceptions=False)
    return {"code": done.exit_code, "document": json.loads(done.stdout)}

run, picture = sys.argv[1:]
shown = {
    "doctor": command("doctor"),
    "parity": command("parity", run, "--engine", "added", "--threads", "1"),
    "bench": command("bench", run, "--engine", "added", "--batch", "1", "--repeats", "1"),
    "run": command("run", run, "--engine", "added", "--number", "1", "--output", picture),
}
if all(part["code"] == 0 for part in shown.values()):
    from gacq_deploy.diffusers import load_denoiser

    with load_denoiser(run, engine="added", threads=1) as denoiser:
        shown["load_denoiser"] = denoiser.engine.label
print(json.dumps(shown))
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return install_package(tmp_path / "site", PACKAGE, "gacq_added_engine:RECORD")


def outcome(site: Path, run: Path, picture: Path, **extra: str) -> dict[str, dict[str, object]]:
    path = os.pathsep.join((str(ROOT), str(ROOT / "cli"), str(site)))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(run), str(picture)],
        env=child_environment({"PYTHONPATH": path, **extra}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def test_every_command_takes_an_engine_that_a_package_adds(
    site: Path, run_copy: Path, tmp_path: Path
) -> None:
    shown = outcome(site, run_copy, tmp_path / "images.png")
    assert {name: part["code"] for name, part in shown.items() if name != "load_denoiser"} == {
        "doctor": 0, "parity": 0, "bench": 0, "run": 0,
    }, shown  # fmt: skip
    text = {name: json.dumps(part) for name, part in shown.items()}
    assert "engine added" in text["doctor"]
    assert "int8.onnx@added" in text["parity"]
    assert "added/int8.onnx" in text["bench"]
    assert all(
        "added to onnxruntime" in text[name] for name in ("parity", "bench", "run", "load_denoiser")
    ), shown
    assert (tmp_path / "images.png").is_file()


def test_what_it_says_of_a_graph_is_heeded(site: Path, run_copy: Path, tmp_path: Path) -> None:
    shown = outcome(site, run_copy, tmp_path / "images.png", TOO_EARLY="1")
    assert {name: part["code"] for name, part in shown.items()} == {
        "doctor": 0, "parity": 4, "bench": 4, "run": 4,
    }, shown  # fmt: skip
    assert all("it is Monday" in json.dumps(part) for part in shown.values())
    assert not (tmp_path / "images.png").exists()
