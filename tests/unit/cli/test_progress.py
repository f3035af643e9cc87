"""The display of a recorded run, with a clock of the test's own, in every width and on every kind of terminal."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from benchmarks.eta import LEAST_S, STREAMS, replayed
from benchmarks.store import load_rows
from gacq_deploy.export.stage import EXPORT_STAGES
from gacq_deploy.progress import PlannedStage, Reporter
from gacq_deploy_cli.progress import BarReporter, Course, LineReporter

WIDTHS = (20, 40, 80, 120, 200)
PLAN = (
    PlannedStage("collect samples", 4),
    PlannedStage("smooth", 5),  # planned, and not needed after all
    PlannedStage("reconstruct blocks", 40),
    PlannedStage("weigh samples for the polish", 20),
    PlannedStage("polish", 36),
)
RECORDED = (
    ("collect samples", 480, 60, 0.01, {}),
    ("reconstruct blocks", 10, 1, 4.0, {"loss": 0.003807, "effective": 140, "alignment": 0.1284}),
    ("weigh samples for the polish", 1, 1, 20.0, {}),
    ("polish", 100, 10, 3.6, {"loss": 0.0001239}),
)
"""Stage, units, units a report, seconds a report, values."""
RUNS = load_rows(STREAMS)
"""What real commands reported, and when."""


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def play(reporter: Reporter, clock: Clock, look: Callable[[], None]) -> None:
    """Run what was recorded; look before and after every report."""
    reporter.plan(PLAN)
    for name, total, units, seconds, values in RECORDED:
        reporter.stage(name, total)
        look()
        for _ in range(0, total, units):
            clock.now += seconds
            look()
            reporter.advance(units, **values)
            look()
    reporter.note("one block was kept as it was")


def drawn(width: int, **how: object) -> tuple[list[str], list[str]]:
    """Return every frame, and what stays on the screen."""
    clock, screen = Clock(), io.StringIO()
    console = Console(file=screen, width=width, force_terminal=True, **how)  # type: ignore[arg-type]
    bar = BarReporter(console, clock)
    frames: list[str] = []

    def look() -> None:
        paper = io.StringIO()
        Console(file=paper, width=width, force_terminal=False).print(bar.render())
        frames.append(paper.getvalue().rstrip("\n"))

    play(bar, clock, look)
    bar.__exit__()
    return frames, screen.getvalue().splitlines()


@pytest.mark.parametrize("width", WIDTHS)
def test_count_time_and_eta_stand_whole_in_every_frame(width: int) -> None:
    frames, kept = drawn(width)
    longest = len("reconstruct")
    for frame in frames:
        assert all(len(line) <= max(width, longest) for line in frame.splitlines()), frame
        assert "ETA " in " ".join(frame.split())
        assert any(f"{done}" in frame for done in ("/480", "/10", "/1", "/100"))
    assert "…" not in "".join(frames)
    assert all(re.search(r"\d+/\d+\s+\d+:\d\d\s+ETA\s+(-:--|\d+:\d\d)", frame) for frame in frames)
    said = " ".join(kept)
    assert all(f"{name}: {total}/{total} in " in said for name, total, *_ in RECORDED)


def test_values_go_first_then_the_bar() -> None:
    at = {width: next(f for f in drawn(width)[0] if "5/10" in f).splitlines()[-1] for width in WIDTHS}
    assert "alignment 0.1284" in at[200]
    assert "alignment" not in at[80]
    assert "━" in at[80]
    assert "━" not in at[40]
    assert at[40].split()[-3:] == ["0:20", "ETA", "0:20"]


def test_it_is_said_how_many_stages_there_are_and_what_is_left() -> None:
    frames, _ = drawn(80)
    assert frames[0].startswith("stage 1 of 5, about 2 min left")
    weighing = next(f for f in frames if "weigh" in f)
    # one stage did not come: it is no longer counted
    assert weighing.startswith("stage 3 of 4, about 50 s left")
    assert frames[-1].startswith("stage 4 of 4, a few seconds left")


@pytest.mark.parametrize("slower", [0.5, 1.0, 3.0])
def test_what_is_left_is_right_within_a_factor_of_two_once_a_tenth_is_done(slower: float) -> None:
    clock = Clock()
    bar = BarReporter(Console(file=io.StringIO(), width=80), clock)
    ends = sum(total / units * seconds for _, total, units, seconds, _ in RECORDED) * slower
    bar.plan(PLAN)
    for name, total, units, seconds, _ in RECORDED:
        bar.stage(name, total)
        for _ in range(0, total, units):
            clock.now += seconds * slower
            bar.advance(units)
            said = bar.seconds_left()
            if clock.now > ends / 10 and ends - clock.now > 10:
                assert said is not None
                assert 0.5 < said / (ends - clock.now) < 2


@pytest.mark.parametrize("stream", RUNS.values(), ids=RUNS)
def test_what_is_left_of_a_real_stage_is_right_within_a_factor_of_two(stream: dict[str, Any]) -> None:
    long = [said for said in replayed(stream["events"]) if said.seconds >= LEAST_S]
    wrong = {said.name: said.worst for said in long if said.worst is not None and said.worst > 2}
    assert not wrong
    silent = {said.name for said in long if said.unknown > 0}
    assert silent <= {EXPORT_STAGES[0]}, "all but torch's exporter say how far they are"


def test_units_that_cost_more_count_for_more() -> None:
    clock = Clock()
    course = Course(clock)
    course.begin("learn", 3, [1, 0, 9])
    clock.now = 2
    course.advance(1, {})
    assert course.stage_left() == pytest.approx(18)
    course.advance(1, {})
    clock.now = 11
    assert course.stage_left() == pytest.approx(9), "half of the last unit, by the pace of the first"
    clock.now = 40
    assert course.stage_left() == 0, "it takes longer than that: no more is known"


def test_a_finished_stage_is_one_plain_line() -> None:
    _, kept = drawn(80)
    assert kept[0] == "collect samples: 480/480 in 0.1 s"
    assert "one block was kept as it was" in kept


@pytest.mark.parametrize("how", [{"no_color": True}, {"color_system": None}, {"color_system": "truecolor"}])
def test_every_palette_says_the_same(how: dict[str, object]) -> None:
    assert drawn(80, **how)[0] == drawn(80)[0]


def test_time_goes_on_where_a_library_cannot_report() -> None:
    clock = Clock()
    bar = BarReporter(Console(file=io.StringIO(), width=80), clock)
    bar.stage("weigh samples", 1)
    paper = io.StringIO()
    for clock.now in (5.0, 65.25):
        Console(file=paper, width=80).print(bar.render())
    first, second = paper.getvalue().splitlines()
    assert "0:05" in first
    assert "1:05" in second
    assert first[0] != second[0], "the sign turns"


def test_a_plan_within_a_plan_comes_first() -> None:
    clock = Clock()
    stream = io.StringIO()
    lines = LineReporter(stream, clock)
    lines.plan([PlannedStage("export"), PlannedStage("parity")])
    lines.plan([PlannedStage("collect", 5), PlannedStage("learn", 5)])
    for name in ("collect", "learn", "export", "parity"):
        lines.stage(name, 1)
        lines.advance()
    assert [line for line in stream.getvalue().splitlines() if "..." in line] == [
        "collect ... (stage 1 of 4)",
        "learn ... (stage 2 of 4)",
        "export ... (stage 3 of 4)",
        "parity ... (stage 4 of 4)",
    ]


def test_lines_come_seldom_and_say_when_it_ends() -> None:
    clock, stream = Clock(), io.StringIO()
    reporter = LineReporter(stream, clock)
    reporter.stage("learn", 10)
    for _ in range(5):
        clock.now += 6
        reporter.advance(loss=0.25)
    reporter.note("one block was kept")
    clock.now += 30
    reporter.advance(5)
    reporter.finish()
    assert stream.getvalue().splitlines() == [
        "learn ...",
        "learn: 2/10, ETA 48 s  loss 0.25",
        "learn: 4/10, ETA 36 s  loss 0.25",
        "one block was kept",
        "learn: 10/10 in 1 min 0 s",
    ]


def test_a_log_hears_of_a_silent_stage_once_a_minute() -> None:
    clock, stream = Clock(), io.StringIO()
    reporter = LineReporter(stream, clock)
    reporter.stage("weigh", 1)
    for _ in range(130):
        clock.now += 1
        reporter.tick()
    assert stream.getvalue().splitlines() == [
        "weigh ...",
        "weigh: 0/1, 1 min 0 s so far",
        "weigh: 0/1, 2 min 0 s so far",
    ]


def test_a_new_stage_ends_the_old_one() -> None:
    clock, stream = Clock(), io.StringIO()
    reporter = LineReporter(stream, clock)
    reporter.stage("one", 1)
    clock.now += 2
    reporter.advance()
    reporter.stage("two", 1)
    assert stream.getvalue().splitlines() == ["one ...", "one: 1/1 in 2.0 s", "two ..."]
