"""What does a person see? A command in a pseudo-terminal, and the screen that an emulator makes of its output."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import termios
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyte

from tests.support.programs import warm_server
from tests.support.programs.commands import child_environment, command_code

LIGHT = """
import numpy, onnx, rich.console, rich.live, rich.logging, rich.table
import gacq_deploy.inspection.artifact, gacq_deploy.inspection.state, gacq_deploy.inspection.verify, gacq_deploy.parity
import gacq_deploy_cli.main
"""
"""What commands import that read records."""
_ROWS, _REMEMBERED = 40, 10_000


@dataclass(frozen=True)
class Seen:
    """What a command left on a terminal: lines as they stand there, the bytes it sent, and its exit code."""

    lines: tuple[str, ...]
    sent: bytes
    exit_code: int

    def text(self, width: int) -> str:
        """Return all lines; one that the terminal broke at its edge is whole again."""
        return "".join(line if len(line) == width else f"{line}\n" for line in self.lines)


def see(
    address: str, arguments: Sequence[str], *, width: int, environment: Mapping[str, str] | None = None
) -> Seen:
    """Run a command on a terminal ``width`` columns wide, in a process forked by the server at ``address``."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", _ROWS, width, 0, 0))
    kept = {name: value for name, value in child_environment().items() if name not in _DECIDING}
    told = {**kept, "TERM": "xterm-256color", **(environment or {})}
    connection, _ = warm_server.request(address, command_code(), arguments, told, (theirs,) * 3)
    os.close(theirs)
    with connection:
        sent = _read_all(ours)
        code = warm_server.read_number(connection)
    screen = pyte.HistoryScreen(width, _ROWS, history=_REMEMBERED, ratio=0.001)
    pyte.ByteStream(screen).feed(sent)
    above = ("".join(row[column].data for column in range(width)) for row in screen.history.top)
    lines = [*above, *screen.display]
    return Seen(tuple(line.rstrip() for line in lines), sent, code)


_DECIDING = frozenset({"COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TERM", "COLORTERM"})
"""Variables by which a program decides how it draws."""


def _read_all(descriptor: int) -> bytes:
    """Return what comes until every writer has closed the terminal."""
    parts = []
    try:
        while part := os.read(descriptor, 1 << 16):
            parts.append(part)
    except OSError:
        pass  # Linux says so that the other side is closed
    finally:
        os.close(descriptor)
    return b"".join(parts)
