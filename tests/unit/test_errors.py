"""Commands in messages can be pasted."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from gacq_deploy.errors import quoted, shell_command


@pytest.mark.parametrize("word", ["my runs/mine", "a.b=[1, 2]", "--set", "it's", "", "a\nb"])
def test_a_command_is_read_by_a_shell_as_it_was_meant(word: str) -> None:
    assert shlex.split(shell_command("parity", word)) == ["gacq-deploy", "parity", word]
    assert shlex.split(quoted(Path(word))) == [str(Path(word))]
