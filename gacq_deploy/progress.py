"""How far is a stage? A stage reports; who draws it is the caller's business."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple, Protocol


class PlannedStage(NamedTuple):
    """A stage that is to come; ``seconds``: how long it will take about on this machine, if that is known."""

    name: str
    seconds: float | None = None


class Reporter(Protocol):
    """Receives what a long stage has to say."""

    def plan(self, stages: Sequence[PlannedStage]) -> None:
        """Say which stages come next, before those that were planned already."""

    def stage(self, name: str, total: int, costs: Sequence[float] = ()) -> None:
        """Start a stage of ``total`` units; it ends when the next one starts or the command ends.

        ``costs``, one a unit in order: how long each takes beside the others, where they differ much.
        """

    def advance(self, n: int = 1, **values: float) -> None:
        """Say that ``n`` more units are done, with named values worth showing."""

    def note(self, text: str) -> None:
        """Say one line that should stay visible."""


class SilentReporter:
    """Says nothing."""

    def plan(self, stages: Sequence[PlannedStage]) -> None:
        """Ignore."""

    def stage(self, name: str, total: int, costs: Sequence[float] = ()) -> None:
        """Ignore."""

    def advance(self, n: int = 1, **values: float) -> None:
        """Ignore."""

    def note(self, text: str) -> None:
        """Ignore."""


class LoggingReporter:
    """Says what stages begin, and every note, to the logger ``gacq_deploy``."""

    def __init__(self, level: int = logging.INFO) -> None:
        self._logger, self._level = logging.getLogger("gacq_deploy"), level

    def plan(self, stages: Sequence[PlannedStage]) -> None:
        """Log nothing: every stage is logged when it begins."""

    def stage(self, name: str, total: int, costs: Sequence[float] = ()) -> None:  # noqa: ARG002
        """Log the stage."""
        self._logger.log(self._level, "%s (%d)", name, total)

    def advance(self, n: int = 1, **values: float) -> None:
        """Log nothing: thousands of steps are no news."""

    def note(self, text: str) -> None:
        """Log the text."""
        self._logger.log(self._level, "%s", text)


SILENT: Reporter = SilentReporter()
