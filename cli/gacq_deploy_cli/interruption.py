"""Does Ctrl-C always stop a command? A library that swallows it in some import is overruled at the next report."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from gacq_deploy.progress import PlannedStage, Reporter
from gacq_deploy_cli.entry import ENDING, Ended


class Attentive:
    """Passes reports on, unless an interrupt came that nobody answered."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._interrupted: KeyboardInterrupt | None = None

    def interrupt(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal as the entry point does, and remember it."""
        del frame
        self._interrupted = KeyboardInterrupt() if number == signal.SIGINT else Ended(number)
        raise self._interrupted

    def plan(self, stages: Sequence[PlannedStage]) -> None:
        """Say what will come."""
        self._reporter.plan(stages)

    def stage(self, name: str, total: int, costs: Sequence[float] = ()) -> None:
        """Start a stage."""
        self._check()
        self._reporter.stage(name, total, costs)

    def advance(self, n: int = 1, **values: float) -> None:
        """Say that more units are done."""
        self._check()
        self._reporter.advance(n, **values)

    def note(self, text: str) -> None:
        """Say one line."""
        self._reporter.note(text)

    def _check(self) -> None:
        if self._interrupted is not None:
            raise self._interrupted


@contextmanager
def attentive(reporter: Reporter) -> Iterator[Reporter]:
    """Yield a reporter at which an interrupt that was swallowed before takes effect."""
    wrapped = Attentive(reporter)
    if threading.current_thread() is not threading.main_thread():
        yield wrapped  # only the main thread may handle signals
        return
    # what is ignored stays ignored (nohup)
    heeded = [n for n in (signal.SIGINT, *ENDING) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, wrapped.interrupt) for number in heeded}
    try:
        yield wrapped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
