"""Does Ctrl-C always stop a command? A library that swallows it in some import is overruled at the next report."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from gacq_deploy.progress import PlannedStage, Reporter


class Attentive:
    """Passes reports on, unless an interrupt came that nobody answered."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._interrupted = False

    def interrupt(self, number: int, frame: FrameType | None) -> None:
        """Handle the signal as Python does, and remember it."""
        del number, frame
        self._interrupted = True
        raise KeyboardInterrupt

    def plan(self, stages: Sequence[PlannedStage]) -> None:
        """Say what will come."""
        self._reporter.plan(stages)

    def stage(self, name: str, total: int) -> None:
        """Start a stage."""
        self._check()
        self._reporter.stage(name, total)

    def advance(self, n: int = 1, **values: float) -> None:
        """Say that more units are done."""
        self._check()
        self._reporter.advance(n, **values)

    def note(self, text: str) -> None:
        """Say one line."""
        self._reporter.note(text)

    def _check(self) -> None:
        if self._interrupted:
            raise KeyboardInterrupt


@contextmanager
def attentive(reporter: Reporter) -> Iterator[Reporter]:
    """Yield a reporter at which an interrupt that was swallowed before takes effect."""
    wrapped = Attentive(reporter)
    if threading.current_thread() is not threading.main_thread():
        yield wrapped  # only the main thread may handle signals
        return
    before = signal.signal(signal.SIGINT, wrapped.interrupt)
    try:
        yield wrapped
    finally:
        signal.signal(signal.SIGINT, before)
