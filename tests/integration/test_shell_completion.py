"""Does the completion that the documents tell of work, in each shell that they name?

Where ``CI`` is set a missing shell is a failure: what is promised must not go untested in silence.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.programs.commands import child_environment

PAGE = Path(__file__).resolve().parents[2] / "docs" / "getting-started.md"
LINES = dict(
    re.findall(r"^\| (\w+)[^|]*\|[^|]*\| `(.*_GACQ_DEPLOY_COMPLETE=.*)` \|$", PAGE.read_text("utf-8"), re.M)
)
"""Shell -> the line that turns completion on."""
SESSIONS = {
    "bash": """
{line}
COMP_WORDS=({typed}) COMP_CWORD={last}
_gacq_deploy_completion gacq-deploy
printf '%s\\n' "${{COMPREPLY[@]}}"
""",
    "zsh": """
zmodload zsh/zpty
zpty inner zsh -f -i
zpty -w inner 'autoload -Uz compinit; compinit -u -D; {line}'
zpty -w -n inner $'{typed}\\t'
zpty -r -m inner seen '*{whole}*'
print -r -- $seen
""",
    "fish": "{line}; complete --do-complete '{typed}'",
}
"""What is typed into each, or asked of it, and what it answers is printed."""


def test_three_shells_are_documented() -> None:
    assert LINES.keys() == SESSIONS.keys()


@pytest.mark.parametrize(
    ("typed", "whole"),
    [("gacq-deploy calib", "calibrate"), ("gacq-deploy calibrate -r sd1", "sd15-w8a8")],
    ids=["command", "recipe"],
)
@pytest.mark.parametrize("shell", SESSIONS)
def test_the_documented_line_completes(shell: str, typed: str, whole: str, tmp_path: Path) -> None:
    program = shutil.which(shell)
    if program is None:
        said = f"{shell} is not installed; on Debian: apt-get install {shell}"
        pytest.fail(said) if os.environ.get("CI") else pytest.skip(said)
    session = SESSIONS[shell].format(
        line=LINES[shell].replace("\\|", "|"), typed=typed, last=len(typed.split()) - 1, whole=whole
    )
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    done = subprocess.run(
        [program, "-c", session],
        env=child_environment({"PATH": path, "HOME": str(tmp_path), "TERM": "dumb"}),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert whole in done.stdout, done.stderr
