"""Does the completion that the documents tell of work, in each shell that they name?"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.support.programs.commands import run_child

PAGE = Path(__file__).resolve().parents[2] / "docs" / "getting-started.md"
SHELLS = re.findall(r"_GACQ_DEPLOY_COMPLETE=(\w+)_source", PAGE.read_text(encoding="utf-8"))


def test_three_shells_are_documented() -> None:
    assert SHELLS == ["bash", "zsh", "fish"]


@pytest.mark.parametrize("shell", SHELLS)
def test_the_documented_line_gives_a_script(shell: str) -> None:
    done = run_child([], before=PROGRAM, extra={"_GACQ_DEPLOY_COMPLETE": f"{shell}_source"})
    assert done.returncode == 0, done.stderr
    assert f"_GACQ_DEPLOY_COMPLETE={shell}_complete" in done.stdout
    if shell == "bash":
        script = f"{done.stdout}\ncomplete -p gacq-deploy\n"
        asked = subprocess.run(["bash"], input=script, text=True, capture_output=True, check=False)
        assert "gacq-deploy" in asked.stdout, asked.stderr


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("gacq-deploy cal", "calibrate"), ("gacq-deploy calibrate --pres", "--preset")],
)
def test_a_word_is_completed(typed: str, offered: str) -> None:
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
    done = run_child([], before=PROGRAM, extra={"_GACQ_DEPLOY_COMPLETE": "bash_complete", **words})
    assert offered in [line.partition(",")[2] for line in done.stdout.splitlines()], done.stderr


PROGRAM = "import sys; sys.argv[0] = 'gacq-deploy'"
