"""How far is a command? A bar on a terminal of any width, lines in a log; both say it at least every few seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

from gacq_deploy.progress import PlannedStage, Reporter
from gacq_deploy_cli.table import folded
from gacq_deploy_cli.units import about, clock, duration

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

Clock = Callable[[], float]
_SECONDS_BETWEEN_LINES, _SILENT_SECONDS = 10.0, 60.0
"""A log gets no more lines than the first, and no fewer than the second."""
_SMALL_BEGIN, _LEAST_SHARE, _FULL_TRUST = 0.05, 0.02, 0.5
"""Shares of a stage. Less than the second tells no pace; up to the third it counts for the more, beside the plan, the
more is done."""
_FRAMES_PER_SECOND = 4
_BAR, _LONGEST_BAR = 8, 40
_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


@dataclass
class RunningStage:
    """A stage that has begun: its name, units in all and done, seconds at its begin, newest values.

    ``costs`` are those of its units, in order; alike where none are given.
    """

    name: str
    total: int
    began: float
    done: int = 0
    values: str = ""
    costs: Sequence[float] = ()
    reports: list[tuple[float, float]] = field(default_factory=list)
    """When, and with which share done: the begin, or what was told first if little was done till then, and the last."""

    def advance(self, units: int, now: float) -> None:
        """Count units."""
        self.done += units
        told = (now, self.share)
        first = self.reports[0] if self.reports else (self.began, 0.0)
        if not self.reports and self.share < _SMALL_BEGIN:
            # what is made ready before the first unit says nothing of the pace
            first = told
        self.reports = [first, told]

    @property
    def share(self) -> float:
        """How much of it is done, 0 to 1."""
        return self._share(self.done)

    @property
    def next_share(self) -> float:
        """How much of it will be done with the unit that runs."""
        return self._share(self.done + 1)

    def pace(self) -> float | None:
        """Return the seconds that the whole stage takes at the pace so far; None where too little is done to tell."""
        if not self.reports:
            return None
        (since, before), (until, done) = self.reports
        return (until - since) / (done - before) if done - before >= _LEAST_SHARE else None

    def share_at(self, now: float) -> float:
        """Return how much of it is done by ``now``, if the unit that runs keeps the pace of those before it."""
        pace = self.pace()
        if not pace:
            return self.share
        kept = self.share + (now - self.reports[1][0]) / pace
        return min(kept, self.next_share)

    def _share(self, units: int) -> float:
        if len(self.costs) == self.total and (whole := sum(self.costs)) > 0:
            return sum(self.costs[:units]) / whole
        return min(1.0, units / self.total) if self.total else 0.0


class Course:
    """Which stage runs, how far it is, and what is still to come."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self.clock = clock
        self.stage: RunningStage | None = None
        self._ahead: list[PlannedStage] = []
        self._finished = 0
        self._planned_s = self._took_s = 0.0
        """What the finished stages were to take, and took: the rest is as much slower."""

    def plan(self, stages: Sequence[PlannedStage]) -> None:
        """Put stages before those that are ahead already."""
        self._ahead = [*stages, *self._ahead]

    def begin(self, name: str, total: int, costs: Sequence[float] = ()) -> str | None:
        """Begin a stage; return what is to be said of the one that ends."""
        said = self.end()
        self.stage = RunningStage(name, total, self.clock(), costs=costs)
        return said

    def advance(self, n: int, values: dict[str, float]) -> None:
        """Count units of the stage that runs."""
        if self.stage is None:
            return
        self.stage.advance(n, self.clock())
        if values:
            self.stage.values = "  ".join(f"{name} {value:.4g}" for name, value in values.items())

    def end(self) -> str | None:
        """End the stage that runs; return it as one plain line."""
        stage, self.stage = self.stage, None
        if stage is None:
            return None
        took = self.clock() - stage.began
        self._finished += 1
        names = [planned.name for planned in self._ahead]
        if stage.name in names:
            # what was planned before it does not come any more: it was done, or not needed
            place = names.index(stage.name)
            if (seconds := self._ahead[place].seconds) is not None:
                self._planned_s, self._took_s = self._planned_s + seconds, self._took_s + took
            del self._ahead[: place + 1]
        return f"{stage.name}: {stage.done}/{stage.total} in {duration(took)}"

    def overall(self) -> str:
        """Return ``stage 4 of 8, about 6 min left``; less where less is known, "" where nothing was planned."""
        place = self._place()
        if place is None:
            return ""
        number = self._finished + 1
        said = f"stage {number} of {number + len(self._ahead) - place - 1}"
        left = self.seconds_left()
        return said if left is None else f"{said}, {about(left)} left"

    def seconds_left(self) -> float | None:
        """Return how long the running stage and those ahead will take; None where that is not known of all."""
        place, stage = self._place(), self.stage
        if place is None or stage is None:
            return None
        known = [planned.seconds for planned in self._ahead[place:] if planned.seconds is not None]
        if len(known) < len(self._ahead) - place:
            return None
        planned, *later = known
        return (self.stage_left() or 0.0) + self._slower(stage, planned) * sum(later)

    def stage_left(self) -> float | None:
        """Return how long the running stage will take yet; None where neither its plan nor its pace tells."""
        stage, place = self.stage, self._place()
        if stage is None:
            return None
        planned = None if place is None else self._ahead[place].seconds
        if planned is not None:
            planned *= self._slower(stage, planned)
        now = self.clock()
        share, pace = stage.share_at(now), stage.pace()
        if pace is None:
            took = now - stage.began
            if planned is None:
                return None
            # a unit that takes longer than it should says that all will
            return max(planned, took / (stage.next_share or 1.0)) - took
        trust = min(1.0, share / _FULL_TRUST)
        return (1 - share) * (pace if planned is None else trust * pace + (1 - trust) * planned)

    def _place(self) -> int | None:
        """Return where the running stage stands among those ahead."""
        names = [planned.name for planned in self._ahead]
        return names.index(self.stage.name) if self.stage and self.stage.name in names else None

    def _slower(self, stage: RunningStage, planned: float) -> float:
        """Return how many times as long as planned everything takes, as far as can be seen."""
        now = self.clock()
        share = stage.share_at(now)
        expected = self._planned_s + share * planned
        took = self._took_s + (now - stage.began if share else 0.0)
        return took / expected if expected > 1 else 1.0


class LineReporter:
    """Prints a line when a stage begins and ends, and now and then between: for logs and pipes."""

    def __init__(self, stream: TextIO, clock: Clock = time.monotonic) -> None:
        self._stream = stream
        self._course = Course(clock)
        self._spoke = clock()

    def plan(self, stages: Sequence[PlannedStage]) -> None:
        """Know what will come."""
        self._course.plan(stages)

    def stage(self, name: str, total: int, costs: Sequence[float] = ()) -> None:
        """End the running stage and announce the next."""
        said = self._course.begin(name, total, costs)
        if said:
            self._say(said)
        overall = self._course.overall()
        self._say(f"{name} ..." + (f" ({overall})" if overall else ""))

    def advance(self, n: int = 1, **values: float) -> None:
        """Print progress and ETA when it is time again."""
        self._course.advance(n, values)
        stage = self._course.stage
        if (
            stage
            and self._course.clock() - self._spoke >= _SECONDS_BETWEEN_LINES
            and stage.done < stage.total
        ):
            self._say_how_far(stage)

    def note(self, text: str) -> None:
        """Print the line."""
        self._say(text)

    def tick(self) -> None:
        """Say that a stage still runs if nothing was said for a minute."""
        if self._course.stage and self._course.clock() - self._spoke >= _SILENT_SECONDS:
            self._say_how_far(self._course.stage)

    def finish(self) -> None:
        """Say how long the running stage took."""
        said = self._course.end()
        if said:
            self._say(said)

    def _say_how_far(self, stage: RunningStage) -> None:
        left = self._course.stage_left()
        now = self._course.clock()
        said = f"ETA {duration(left)}" if left is not None else f"{duration(now - stage.began)} so far"
        self._say(f"{stage.name}: {stage.done}/{stage.total}, {said}  {stage.values}".rstrip())

    def _say(self, text: str) -> None:
        self._spoke = self._course.clock()
        self._stream.write(text + "\n")
        self._stream.flush()


class BarReporter:
    """Draws the running stage below one plain line for each finished one."""

    def __init__(self, console: Console, clock: Clock = time.monotonic) -> None:
        self._console = console
        self._course = Course(clock)
        self._live: Live | None = None

    def __enter__(self) -> BarReporter:
        from rich.live import Live

        self._live = Live(
            console=self._console,
            get_renderable=self.render,
            refresh_per_second=_FRAMES_PER_SECOND,
            transient=True,
        )
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._print(self._course.end())
        if self._live is not None:
            self._live.stop()

    def plan(self, stages: Sequence[PlannedStage]) -> None:
        """Know what will come."""
        self._course.plan(stages)

    def stage(self, name: str, total: int, costs: Sequence[float] = ()) -> None:
        """End the running stage with a line, and draw the next."""
        self._print(self._course.begin(name, total, costs))

    def advance(self, n: int = 1, **values: float) -> None:
        """Move the bar and show the newest values."""
        self._course.advance(n, values)

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        self._print(text)

    def seconds_left(self) -> float | None:
        """Return how long the command will take yet, if that is known."""
        return self._course.seconds_left()

    def _print(self, text: str | None) -> None:
        if text:
            # never cropped, and folded between words only
            self._console.out(folded(text, self._console.width), highlight=False)

    def render(self) -> RenderableType:
        """Return what stands below the finished stages now."""
        from rich.text import Text

        stage = self._course.stage
        if stage is None:
            return Text("")
        course = self._course
        elapsed, left = course.clock() - stage.began, course.stage_left()
        lines = stage_lines(stage, course.overall(), elapsed, left, self._console.width)
        return Text("\n").join(Text.assemble(*line) for line in lines)


Part = tuple[str, str]
"""Text and its style."""


def stage_lines(
    stage: RunningStage, overall: str, elapsed: float, left: float | None, width: int
) -> list[list[Part]]:
    """Return the lines of a running stage that fit ``width``; no number, unit or word is broken.

    What goes first where there is little room: the values, then the bar. Count, time and ETA stay, one below the
    other if need be.
    """
    sign = _SPINNER[int(elapsed * _FRAMES_PER_SECOND) % len(_SPINNER)]
    facts = [f"{stage.done}/{stage.total}", clock(elapsed), f"ETA {'-:--' if left is None else clock(left)}"]
    name = stage.name
    room = width - len(sign) - 1 - len(name) - 1 - len(" ".join(facts))
    lines: list[list[Part]] = [[(line, "dim")] for line in _wrapped(overall.split(), width)]
    if room < 0:
        return [*lines, *([(line, "")] for line in _wrapped([sign, *name.split(), *facts], width))]
    current: list[Part] = [(f"{sign} ", "cyan"), (f"{name} ", "")]
    if room > _BAR:
        current += [*_bar(stage, min(room - 1, _LONGEST_BAR)), (" ", "")]
        room -= min(room - 1, _LONGEST_BAR) + 1
    current.append((" ".join(facts), ""))
    if stage.values and len(stage.values) + 2 <= room:
        current.append((f"  {stage.values}", "dim"))
    return [*lines, current]


def _bar(stage: RunningStage, length: int) -> list[Part]:
    full = round(stage.share * length)
    return [("━" * full, "green"), ("━" * (length - full), "bright_black")]


def _wrapped(words: Sequence[str], width: int) -> Iterator[str]:
    """Yield lines of whole words."""
    line = ""
    for word in words:
        if line and len(line) + 1 + len(word) > width:
            yield line
            line = word
        else:
            line = f"{line} {word}" if line else word
    if line:
        yield line


@contextmanager
def lines_on(stream: TextIO) -> Iterator[Reporter]:
    """Yield a reporter for a log, which is heard of at least once a minute."""
    reporter, over = LineReporter(stream), threading.Event()

    def watch() -> None:
        while not over.wait(1.0):
            reporter.tick()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield reporter
    finally:
        over.set()
        watcher.join()
    reporter.finish()
