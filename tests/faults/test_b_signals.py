"""Group B: a signal ends a command at once, in words; what was there stays, and the same command then does its work."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest

from gacq_deploy.export.stage import EXPORT_STAGES
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.storage.files import TEMP_PREFIX
from gacq_deploy.storage.lock import LOCK_NAME
from tests.faults.matrix import SIGNALLED
from tests.support.programs.commands import command_code, invoke
from tests.support.programs.warm_process import WarmProcess

SLOW_BUILDER = """
import sys
from gacq_deploy.build_trt import compiler, stage
compiler.WORKER = (sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)")
stage.describe_library = lambda name: compiler.LibraryFacts(name, "1.7.1.116", ("8.9",))
stage.choose_backend = lambda name: "tensorrt-rtx"
stage.require_polygraphy = lambda command: None
"""
"""A builder that never ends, whether or not the library is here."""
COMMANDS: Mapping[str, tuple[str, str, str]] = {
    "export": ("export --onnx {run} --json", "", EXPORT_STAGES[0]),
    "build-trt": ("build-trt {run} --json", SLOW_BUILDER, "compile"),
    "bench": ("bench {run} --repeats 1000 --json", "", "measure"),
}
"""Command, what stands in for others, and what it says when it is in the middle of its work."""
CODES = {"SIGINT": 130, "SIGTERM": 143}


def _files(run: RunDirectory) -> dict[Path, bytes]:
    found = (path for path in run.root.rglob("*") if path.is_file() and path.name != LOCK_NAME)
    return {path: path.read_bytes() for path in found}


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("command", SIGNALLED)
def test_b(command: str, name: str, run: RunDirectory, warm_server: str) -> None:
    if command == "export":
        run.onnx_manifest.unlink()
    before = _files(run)
    words, stand_ins, says = COMMANDS[command]
    with WarmProcess(warm_server, command_code(stand_ins), *words.format(run=run.root).split()) as child:
        heard = next((line for line in child.stderr if says in line), "")
        child.send_signal(signal.Signals[name])
        stdout, stderr = child.communicate(timeout=60)
    assert child.returncode == CODES[name], (heard, stdout, stderr)
    assert "state saved" in json.loads(stdout)["error"]["message"]
    assert "Traceback" not in stderr
    assert _files(run) == before
    assert not list(run.root.rglob(f"{TEMP_PREFIX}*"))
    if command == "export":
        assert invoke(["export", "--onnx", str(run.root), "--json"]).exit_code == 0
