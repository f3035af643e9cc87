"""The first line that runs: how the process ends is settled before anything is imported that a signal may meet."""

from __future__ import annotations

import io
import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import NoReturn

ENDING = (signal.SIGTERM, signal.SIGHUP)
"""End a command as Ctrl-C does: state saved, children and temporary files gone."""


class Ended(KeyboardInterrupt):
    """A signal asked the process to end; every place that lets Ctrl-C through lets this through."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    @property
    def exit_code(self) -> int:
        """What a shell gives a program that the signal ended."""
        return 128 + self.number


def end(number: int, frame: FrameType | None) -> None:
    """Handle a signal.

    Raises:
        Ended: always.
    """
    del frame
    raise Ended(number)


def heed_signals() -> None:
    """Let the signals of :data:`ENDING` end this process in order, unless it was told to ignore them (nohup).

    As the first process of a container it would not even hear those that it has no handler for.
    """
    for number in ENDING:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, end)


def settle_streams() -> None:
    """Open the streams that the process was started without, and let no character that one cannot hold end a command.

    A daemon or a cron job may have none: the first file that is opened would then be taken for its output.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", encoding="utf-8", closefd=False))  # noqa: SIM115 (kept open)
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            # a stream whose descriptor was put in its place later takes no other setting
            with suppress(OSError):
                stream.reconfigure(errors="backslashreplace")


def main() -> NoReturn:
    """Entry point of ``gacq-deploy``."""
    heed_signals()
    settle_streams()
    try:
        from gacq_deploy_cli.main import main as command
    except KeyboardInterrupt as interrupt:
        sys.stderr.write("Error: Interrupted before anything began.\n")
        sys.exit(interrupt.exit_code if isinstance(interrupt, Ended) else 130)
    command()
