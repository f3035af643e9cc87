"""Group L: what a process inherits changes nothing in what a command writes."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from pathlib import Path

import pytest

from gacq_deploy.run_directory import RunDirectory
from tests.faults.matrix import PROCESS
from tests.support.programs.commands import invoke, run_child

INHERITED: Mapping[str, tuple[str, dict[str, str]]] = {
    "locale that there is not": ("", {"LC_ALL": "xx_XX.UTF-8", "LANG": "xx_XX"}),
    "time zone that there is not": ("", {"TZ": "Nowhere/Town"}),
    "umask 077": ("import os; os.umask(0o077)", {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PROCESS)
def test_l(name: str, run: RunDirectory, tmp_path: Path) -> None:
    before, extra = INHERITED[name]
    words = ["run", str(run.root), "-n", "1", "--threads", "1", "--json", "-o"]
    assert invoke([*words, str(tmp_path / "usual.png")]).exit_code == 0
    done = run_child([*words, str(tmp_path / "odd.png")], before=before, extra=extra)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "odd.png").read_bytes() == (tmp_path / "usual.png").read_bytes()
    private = stat.S_IMODE((tmp_path / "odd.png").stat().st_mode) == 0o600
    assert private == (name == "umask 077")
