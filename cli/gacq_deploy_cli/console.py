"""What does the user see? Results on stdout (tables, or one JSON document), progress and logs on stderr."""

from __future__ import annotations

import io
import json
import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

import click

from gacq_deploy.progress import SILENT, Reporter
from gacq_deploy_cli.interruption import attentive

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_SECONDS_BETWEEN_LINES = 10.0
"""So that progress does not fill a log."""
_PIPE_WIDTH = 240
"""A pipe has no width of its own, and no line of a table should be folded in it."""


class Output:
    """Where a command's results and progress go. ``emit`` is called once, at the end."""

    def __init__(self, *, as_json: bool, verbosity: int, mute: bool = False) -> None:
        """``mute``: another process of the group says it all."""
        self.as_json = as_json
        self.verbosity = -1 if mute else verbosity
        self._mute = mute

    def start_logging(self) -> None:
        """Send the library's log to stderr at the level the user asked for."""
        from rich.console import Console
        from rich.logging import RichHandler

        logger = logging.getLogger("gacq_deploy")
        level = {0: logging.WARNING, 1: logging.INFO}.get(self.verbosity, logging.DEBUG)
        logger.setLevel(logging.ERROR if self.verbosity < 0 else level)
        # a process may run several commands (tests do): one handler, on the stderr of the newest
        for old in [h for h in logger.handlers if isinstance(h, RichHandler)]:
            logger.removeHandler(old)
        logger.addHandler(RichHandler(console=Console(stderr=True), show_path=False))

    @contextmanager
    def progress(self) -> Iterator[Reporter]:
        """Yield a reporter: bars with ETA on a terminal, plain lines elsewhere, nothing with ``-q``."""
        with self._drawn() as reporter, attentive(reporter) as attentive_reporter:
            yield attentive_reporter

    @contextmanager
    def _drawn(self) -> Iterator[Reporter]:
        if self.verbosity < 0:
            yield SILENT
        elif sys.stderr.isatty():
            with _bars() as bars:
                yield RichReporter(bars)
        else:
            reporter = LineReporter(sys.stderr)
            yield reporter
            reporter.finish()

    def note(self, text: str) -> None:
        """Say something on the way, on stderr; nothing with ``-q``."""
        if self.verbosity >= 0:
            click.echo(text, err=True)

    def emit(self, document: Any, *tables: Table | str) -> None:
        """Print the result: ``document`` with ``--json``, else the tables and lines."""
        if self._mute:
            return
        if self.as_json:
            click.echo(json.dumps(document, indent=2, ensure_ascii=False, default=str))
            return
        for item in tables:
            if isinstance(item, str):
                click.echo(item)
            else:
                item.show()


class Table:
    """Rows of text under a header; cells are shown as they are, never parsed as markup."""

    def __init__(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        self._title = title
        self._columns = columns
        self._rows = [list(map(str, row)) for row in rows]

    def show(self) -> None:
        """Print to stdout without the columns that are empty; a pipe gets every cell on one line."""
        from rich import box
        from rich.console import Console
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(
            title=Text(self._title), title_justify="left", box=box.SIMPLE_HEAD, title_style="bold"
        )
        kept = [i for i in range(len(self._columns)) if self._is_filled(i)]
        for i in kept:
            table.add_column(Text(self._columns[i]), overflow="fold", no_wrap=i == kept[0])
        for row in self._rows:
            table.add_row(*(_styled(row[i]) for i in kept))
        if sys.stdout.isatty():
            Console(file=sys.stdout).print(table)
            return
        # rich folds to the console's width, which a pipe does not have, and pads every line to it
        text = io.StringIO()
        console = Console(file=text, width=_PIPE_WIDTH)
        console.print(table)
        click.echo("\n".join(line.rstrip() for line in text.getvalue().splitlines()))

    def _is_filled(self, column: int) -> bool:
        return any(row[column] for row in self._rows)


_STYLES = {"ok": "green", "warning": "yellow", "warn": "yellow", "absent": "dim"}
_STYLES |= dict.fromkeys(("fail", "error"), "red")


def _styled(cell: str) -> Any:
    from rich.text import Text

    return Text(cell, style=_STYLES.get(cell.lower(), ""))


def _bars() -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[values]}", markup=False),
        console=Console(stderr=True),
    )


class RichReporter:
    """Draws one bar a stage with elapsed time and ETA."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID | None = None

    def stage(self, name: str, total: int) -> None:
        """Start a bar."""
        self._task = self._progress.add_task(name, total=total, values="")

    def advance(self, n: int = 1, **values: float) -> None:
        """Move the bar and show the newest values."""
        if self._task is None:
            return
        self._progress.advance(self._task, n)
        if values:
            self._progress.update(self._task, values=_values(values))

    def note(self, text: str) -> None:
        """Print a line above the bars."""
        self._progress.console.print(text, markup=False, highlight=False)


class LineReporter:
    """Prints a line at most every ten seconds and one when a stage ends: for logs and pipes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._name = ""
        self._total = self._done = 0
        self._began = self._spoke = time.monotonic()

    def stage(self, name: str, total: int) -> None:
        """End the running stage and announce the next."""
        self.finish()
        self._name, self._total, self._done = name, total, 0
        self._began = self._spoke = time.monotonic()
        self._say(f"{name} ...")

    def advance(self, n: int = 1, **values: float) -> None:
        """Print progress and ETA when it is time again."""
        self._done += n
        now = time.monotonic()
        if now - self._spoke >= _SECONDS_BETWEEN_LINES and 0 < self._done < self._total:
            self._spoke = now
            remaining = (now - self._began) / self._done * (self._total - self._done)
            line = f"{self._name}: {self._done}/{self._total}, ETA {duration(remaining)}"
            self._say(f"{line}  {_values(values)}".rstrip())

    def note(self, text: str) -> None:
        """Print the line."""
        self._say(text)

    def finish(self) -> None:
        """Say how long the running stage took."""
        if self._name:
            self._say(
                f"{self._name}: {self._done}/{self._total} in {duration(time.monotonic() - self._began)}"
            )
            self._name = ""

    def _say(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()


def _values(values: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())


def duration(seconds: float) -> str:
    """Return ``42 s``, ``3 min 5 s`` or ``2 h 10 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(count: float) -> str:
    """Return a number of bytes in the unit that suits it."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"
