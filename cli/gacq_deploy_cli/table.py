"""How are rows shown in the width there is? As a table or two if all words fit whole, else value below value."""

from __future__ import annotations

import codecs
import io
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import Any, TextIO

import click

from gacq_deploy.errors import printable_text

_GAP = 3
"""Blanks between two columns, the style's own."""
_NARROWEST_PROSE = 24
"""A column of prose is not folded below this."""


def output_width(stream: TextIO | None = None) -> int | None:
    """Return the columns of stdout, or another stream: COLUMNS, else the terminal's; None: a pipe, never folded."""
    told = os.environ.get("COLUMNS", "")
    if told.isdecimal() and int(told):
        return int(told)
    return shutil.get_terminal_size().columns if (stream or sys.stdout).isatty() else None


_RULE = "─"
_COMMAND = re.compile("`[^`]*`")
_HELD = "\0"
"""In place of a blank that must not become the end of a line."""


def folded(text: str, width: int | None) -> str:
    """Return prose in lines of at most ``width``; words, paths, numbers and commands stay whole, whatever their length.

    A command stands between backticks.
    """
    return text if width is None else _folded(text, width)


def _folded(text: str, width: int, indent: str = "") -> str:
    how: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
    how |= {"initial_indent": indent, "subsequent_indent": indent}
    held = _COMMAND.sub(lambda command: command[0].replace(" ", _HELD), text)
    lines = [textwrap.fill(line, width, **how) for line in held.splitlines()]
    return "\n".join(lines).replace(_HELD, " ")


class Table:
    """Rows of text under a header; cells are shown as they are, without control characters, never parsed as markup."""

    def __init__(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        self._title = printable_text(title)
        self._columns = columns
        self._rows = [[printable_text(str(cell)) for cell in row] for row in rows]

    def show(self) -> None:
        """Print to stdout without the columns that are empty."""
        click.echo(self.text(output_width(), color=is_colored(sys.stdout)), color=True)

    def text(self, width: int | None, *, color: bool = False) -> str:
        """Return the table in ``width`` columns, None for as many as it needs.

        A row becomes lines of label and value where it is the only one. Columns that do not fit beside the others go
        into more tables below, the first column repeated, if that takes half the lines of label and value at most.
        """
        kept = [i for i in range(len(self._columns)) if any(row[i] for row in self._rows)]
        columns = [self._columns[i] for i in kept]
        rows = [[row[i] for i in kept] for row in self._rows]
        widths = _column_widths(columns, rows, width)
        is_single = len(rows) == 1 and len(columns) > 2
        if widths is not None and not is_single:
            return _drawn(self._title, columns, rows, widths, color=color)
        stacked = _stacked(self._title, columns, rows, width)
        if is_single or width is None or len({row[0] for row in rows}) < len(rows):
            return stacked
        several = _several(self._title, columns, rows, width, color=color)
        return several if several and 2 * several.count("\n") <= stacked.count("\n") else stacked


def _several(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], width: int, *, color: bool
) -> str:
    """Return tables below each other, each with the first column; "" where there is no other column."""
    parts: list[str] = []
    for group in _column_groups(columns, rows, width):
        pick = itemgetter(*group)
        names = pick(columns)
        # below the first one, what says nothing is left out
        cells = [pick(row) for row in rows if not parts or any(pick(row)[1:])]
        widths = _column_widths(names, cells, width)
        heading = "" if parts else title
        parts.append(
            _stacked(heading, names, cells, width)
            if widths is None
            else _drawn(heading, names, cells, widths, color=color)
        )
    return "\n".join(parts)


def _column_groups(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[list[int]]:
    """Return the columns of several tables, each the first and as many of the others as fit beside it unfolded."""
    natural = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    groups: list[list[int]] = []
    room = 0
    for i in range(1, len(columns)):
        if not groups or natural[i] + _GAP > room:
            groups.append([0])
            room = width - natural[0] - _GAP
        groups[-1].append(i)
        room -= natural[i] + _GAP
    return groups


def _column_widths(
    columns: Sequence[str], rows: Sequence[Sequence[str]], width: int | None
) -> list[int] | None:
    """Return the width of each column so that all fit; None if they cannot without breaking a word.

    Columns of prose are folded between words, the widest first; the others stay on one line.
    """
    cells = [[column, *(row[i] for row in rows)] for i, column in enumerate(columns)]
    natural = [max(map(len, column)) for column in cells]
    if width is None:
        return natural
    least = [max(len(word) for cell in column for word in cell.split() or [""]) for column in cells]
    least = [max(least[i], min(natural[i], _NARROWEST_PROSE)) for i in range(len(columns))]
    # the first column names the row
    least[:1] = natural[:1]
    room = width - _GAP * len(columns)
    if sum(least) > room:
        return None
    widths = list(natural)
    while sum(widths) > room:
        # the one that can give most gives
        i = max(range(len(widths)), key=lambda n: widths[n] - least[n])
        widths[i] -= 1
    return widths


def _drawn(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], widths: Sequence[int], *, color: bool
) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    heading = Text(title) if title else None
    table = RichTable(title=heading, title_justify="left", box=box.SIMPLE_HEAD, title_style="bold")
    for column, width in zip(columns, widths, strict=True):
        table.add_column(Text(column), width=width)
    for row in rows:
        table.add_row(*map(_styled, row))
    text = io.StringIO()
    full = sum(widths) + _GAP * len(widths) + 2
    Console(
        file=text, width=max(full, len(title)), force_terminal=color, no_color=not color, legacy_windows=False
    ).print(table)
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    if not is_unicode(sys.stdout):
        lines = [line.replace(_RULE, "-") for line in lines]
    return "\n".join(lines)


def _stacked(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], width: int | None) -> str:
    label = max(map(len, columns), default=0)
    blocks = []
    for row in rows:
        pairs = [(column, cell) for column, cell in zip(columns, row, strict=True) if cell]
        blocks.append("\n".join(_pair(column, cell, label, width) for column, cell in pairs))
    # rows of one line need no gap between them
    gap = "\n\n" if any("\n" in block for block in blocks) else "\n"
    return f"\n{title}\n{gap.join(blocks)}" if blocks else f"\n{title}"


def _pair(column: str, cell: str, label: int, width: int | None) -> str:
    """Return ``label  value``, or the value below its label where both do not fit."""
    head = f"  {column:<{label}}  "
    if width is None:
        return f"{head}{cell}"
    longest = max((len(word) for word in cell.split()), default=0)
    if len(head) + longest <= width:
        indent = " " * len(head)
        return head + _folded(cell, width, indent).lstrip()
    return f"{_folded(column, width, '  ')}\n{_folded(cell, width, '    ')}"


def is_unicode(stream: TextIO) -> bool:
    """Tell whether a stream takes every character; what is not a text file of the system's does."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return codecs.lookup(encoding).name.startswith("utf")


def is_colored(stream: TextIO) -> bool:
    """Tell whether a stream takes colours: a terminal that is not dumb, or any where FORCE_COLOR is set."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") in ("dumb", "unknown"):
        return False
    return stream.isatty() or bool(os.environ.get("FORCE_COLOR"))


_STYLES = {"ok": "green", "warning": "yellow", "warn": "yellow", "absent": "dim", "unchecked": "dim"}
_STYLES |= dict.fromkeys(("fail", "error"), "red")


def _styled(cell: str) -> Any:
    from rich.text import Text

    return Text(cell, style=_STYLES.get(cell.lower(), ""))
