"""Commands in messages can be pasted, and no message steers a terminal."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gacq_deploy.errors import GacqError, quoted, shell_command


@pytest.mark.parametrize("word", ["my runs/mine", "a.b=[1, 2]", "--set", "it's", "", "a\nb"])
def test_a_command_is_read_by_a_shell_as_it_was_meant(word: str) -> None:
    assert shlex.split(shell_command("parity", word)) == ["gacq-deploy", "parity", word]
    assert shlex.split(quoted(Path(word))) == [str(Path(word))]


@given(st.text())
def test_no_error_holds_a_control_character(name: str) -> None:
    error = GacqError(f"Node '{name}' is odd.\n\tSecond line.", f"Mend '{name}'.")
    for text in (error.message, error.hint, str(error), *error.args):
        assert not set(text) & {chr(code) for code in (*range(9), *range(11, 32), *range(127, 160))}
    assert error.message.endswith("' is odd.\n\tSecond line.")
    if name.isprintable():
        assert error.message.startswith(f"Node '{name}' is")


def test_bytes_that_are_no_text_are_shown_as_escapes() -> None:
    error = GacqError(b"There is no caf\xe9.".decode(errors="surrogateescape"))
    assert str(error) == "There is no caf\\udce9."
