"""Run a command as a user does: in this process for speed, or in a process of its own where that matters."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from click.testing import CliRunner, Result

from gacq_deploy_cli.main import cli

ROOT = Path(__file__).resolve().parents[3]


def invoke(arguments: Sequence[str]) -> Result:
    """Run a command in this process; errors other than exits are raised as they are."""
    return CliRunner().invoke(cli, list(arguments), prog_name="gacq-deploy", catch_exceptions=False)


def child_environment(extra: Mapping[str, str] | None = None, *, root: Path = ROOT) -> dict[str, str]:
    """Return the environment of a child process that runs the checkout in ``root`` with one thread."""
    path = os.pathsep.join((str(root), str(root / "cli")))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **(extra or {})}


def command_code(before: str = "") -> str:
    """Return the code of a process that runs the command in ``sys.argv``, after the Python statements ``before``."""
    return f"{before}\nfrom gacq_deploy_cli.entry import main\nmain()"


def run_child(
    arguments: Sequence[str], *, before: str = "", extra: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command in a child process, after the Python statements ``before``."""
    return subprocess.run(
        [sys.executable, "-c", command_code(before), *arguments],
        env=child_environment(extra),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
