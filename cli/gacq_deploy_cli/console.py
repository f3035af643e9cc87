"""What does the user see? Results on stdout (tables, or one JSON document), progress and logs on stderr."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import click

from gacq_deploy.errors import printable_text, shell_command
from gacq_deploy.progress import SILENT, Reporter
from gacq_deploy_cli.interruption import attentive
from gacq_deploy_cli.progress import BarReporter, lines_on
from gacq_deploy_cli.table import Table, folded, is_unicode, output_width

Word = str | Path


class Verbatim(str):
    """Text that is shown as it is, in any width: to be pasted, or read by a program."""


class NextStep(NamedTuple):
    """A command to type next, printed as it can be pasted: on one line, whatever the width, and quoted."""

    words: tuple[Word, ...]
    why: str = ""
    lead: str = "Next"

    def __str__(self) -> str:
        command = shell_command(*self.words)
        # the reason stands above: what is pasted is the command alone
        return f"{self.lead}, {self.why}:\n    {command}" if self.why else f"{self.lead}: {command}"


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
            return
        from rich.console import Console

        console = Console(stderr=True)
        if console.is_terminal and not console.is_dumb_terminal:
            with BarReporter(console) as bar:
                yield bar
        else:
            with lines_on(sys.stderr) as lines:
                yield lines

    def note(self, text: str) -> None:
        """Say something on the way, on stderr, folded to its width; nothing with ``-q``."""
        if self.verbosity >= 0:
            click.echo(folded(printable_text(text), output_width(sys.stderr)), err=True)

    def emit(self, document: Any, *tables: Table | NextStep | Verbatim | str) -> None:
        """Print the result: ``document`` with ``--json``, else the tables and lines, folded to the width there is."""
        if self._mute:
            return
        if self.as_json:
            # what a stream cannot hold is escaped as JSON does it
            escaped = not is_unicode(sys.stdout)
            text = json.dumps(document, indent=2, ensure_ascii=escaped, default=str)
            click.echo(printable_text(text))
            return
        for item in tables:
            match item:
                case Table():
                    item.show()
                case NextStep() | Verbatim():
                    click.echo(printable_text(str(item)))
                case _:
                    click.echo(folded(printable_text(item), output_width()))
