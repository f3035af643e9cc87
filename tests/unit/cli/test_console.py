"""Where do results, notes and progress go?"""

from __future__ import annotations

import json

import pytest

from gacq_deploy_cli.console import NextStep, Output
from gacq_deploy_cli.table import Table


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Output(as_json=False, verbosity=-1).progress() as report:
        report.plan([])
        report.stage("learn", 1)
        report.advance()
        report.note("done")
    assert capsys.readouterr().err == ""


def test_json_replaces_the_tables(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("title", ["name", "empty"], [("a[b]", "")])
    Output(as_json=True, verbosity=0).emit({"a": 1}, table, "line")
    assert capsys.readouterr().out == '{\n  "a": 1\n}\n'
    Output(as_json=False, verbosity=0).emit({"a": 1}, table, "line")
    shown = capsys.readouterr().out
    assert "a[b]" in shown
    assert "empty" not in shown
    assert shown.endswith("line\n")
    assert all(line == line.rstrip() for line in shown.splitlines())


def test_the_next_command_can_be_pasted_in_any_width(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    Output(as_json=False, verbosity=0).emit(
        {}, "a b " * 10, NextStep(("export", "my runs/mine"), "writes the graphs")
    )
    *prose, why, command = capsys.readouterr().out.splitlines()
    assert max(map(len, prose)) <= 20
    assert why == "Next, writes the graphs:"
    assert command == "    gacq-deploy export 'my runs/mine'"


HOSTILE = "mm\x1b]0;title\x07\x1b[2J\x9b2J\x7f\u202egnp"


@pytest.mark.parametrize("as_json", [True, False])
def test_names_of_others_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str], as_json: bool) -> None:
    output = Output(as_json=as_json, verbosity=0)
    output.note(f"a {HOSTILE}")
    output.emit(
        {"node": HOSTILE}, Table(f"b {HOSTILE}", ["node"], [(HOSTILE,)]), f"c {HOSTILE}", NextStep((HOSTILE,))
    )
    shown = capsys.readouterr()
    assert all(letter.isprintable() or letter == "\n" for letter in shown.out + shown.err)
    if as_json:
        assert json.loads(shown.out) == {"node": HOSTILE}
    else:
        assert shown.out.count("mm\\u001b]0;title\\u0007") == 4
