"""Progress, tables and units as a user sees them."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.progress import Progress, TextColumn

from gacq_deploy_cli import console
from gacq_deploy_cli.console import LineReporter, Output, RichReporter, Table, duration, size


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def test_lines_come_seldom_and_say_when_it_ends(clock: list[float]) -> None:
    stream = io.StringIO()
    reporter = LineReporter(stream)
    reporter.stage("learn", 10)
    for _ in range(5):
        clock[0] += 6
        reporter.advance(loss=0.25)
    reporter.note("one block was kept")
    clock[0] += 30
    reporter.advance(5)
    reporter.finish()
    assert stream.getvalue().splitlines() == [
        "learn ...",
        "learn: 2/10, ETA 48 s  loss 0.25",
        "learn: 4/10, ETA 36 s  loss 0.25",
        "one block was kept",
        "learn: 10/10 in 1 min 0 s",
    ]


def test_a_new_stage_ends_the_old_one(clock: list[float]) -> None:
    stream = io.StringIO()
    reporter = LineReporter(stream)
    reporter.stage("one", 1)
    clock[0] += 2
    reporter.advance()
    reporter.stage("two", 1)
    assert stream.getvalue().splitlines() == ["one ...", "one: 1/1 in 2.0 s", "two ..."]


def test_bars_show_the_stage_its_count_and_values() -> None:
    stream = io.StringIO()
    columns = (
        TextColumn("{task.description} {task.completed}/{task.total} {task.fields[values]}", markup=False),
    )
    with Progress(*columns, console=Console(file=stream, force_terminal=True, width=80)) as bars:
        reporter = RichReporter(bars)
        reporter.advance()  # nothing to move yet
        reporter.stage("learn [bold]", 4)
        reporter.advance(3, loss=0.5)
        reporter.note("[red] is shown as it is")
    assert "learn [bold] 3/4 loss 0.5" in stream.getvalue()
    assert "[red] is shown as it is" in stream.getvalue()


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Output(as_json=False, verbosity=-1).progress() as report:
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


def test_a_pipe_gets_long_cells_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    site = "up_blocks.0.attentions.1.transformer_blocks.0.attn1.to_out.0:input"
    Output(as_json=False, verbosity=0).emit({}, Table("t", ["site", "other"], [(site, "x" * 80)]))
    assert f"{site}   {'x' * 80}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (42.4, "42 s"), (185, "3 min 5 s"), (7800, "2 h 10 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2_618_796, "2.6 MB"), (3.2e9, "3.20 GB")],
)
def test_sizes(count: float, text: str) -> None:
    assert size(count) == text
