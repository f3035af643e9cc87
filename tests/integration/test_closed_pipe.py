"""What happens when the reader of a command's output leaves early, as ``| head -1`` does?"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.programs.commands import child_environment

_COMMAND = [sys.executable, "-c", "from gacq_deploy_cli.main import main\nmain()"]


def _run_without_reader(arguments: list[str], *, closed: str) -> tuple[int, str]:
    """Run a command whose ``closed`` stream is a pipe nobody reads; return exit code and the other stream."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, closed: writer}
        done = subprocess.run(
            [*_COMMAND, *arguments], env=child_environment(), text=True, timeout=120, check=False, **streams
        )
    finally:
        os.close(writer)
    return done.returncode, (done.stderr if closed == "stdout" else done.stdout)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["run", "--help"],
        ["recipes", "list"],
        ["recipes", "schema"],
        ["recipes", "list", "--json"],
    ],
    ids=" ".join,
)
def test_it_ends_quietly_as_a_closed_pipe_ends_any_program(arguments: list[str]) -> None:
    assert _run_without_reader(arguments, closed="stdout") == (141, "")


def test_an_error_nobody_reads_does_not_become_a_traceback() -> None:
    assert _run_without_reader(["recipes", "show", "nonsense"], closed="stderr") == (141, "")
