"""How far is the judging of one engine? It is told by the rows that its graphs were run on."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from gacq_deploy.backends.base import Engine, Feeds, TensorInfo
from gacq_deploy.progress import Reporter
from gacq_deploy.spec import Array


class RowsRun:
    """Counts rows up to those expected: an engine may be given some more, to fill a batch."""

    def __init__(self, report: Reporter, name: str, expected: int) -> None:
        self._report, self._left = report, expected
        report.stage(name, expected)

    def count(self, rows: int) -> None:
        """Say that so many more rows were run."""
        rows = min(rows, self._left)
        self._left -= rows
        self._report.advance(rows)

    def end(self) -> None:
        """Say that all is done: what could not be run is not waited for."""
        self.count(self._left)


class CountedEngine:
    """An engine whose rows are counted."""

    def __init__(self, engine: Engine, rows: RowsRun) -> None:
        self._engine, self._rows = engine, rows

    @property
    def label(self) -> str:
        """What really runs."""
        return self._engine.label

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """Declared inputs."""
        return self._engine.inputs

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """Declared outputs."""
        return self._engine.outputs

    @property
    def max_rows(self) -> int | None:
        """Largest batch of one run."""
        return self._engine.max_rows

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Run once and count.

        Raises:
            EngineError, ResourceError: as the engine does.
        """
        results = self._engine.run(feeds)
        self._rows.count(max(map(len, feeds.values()), default=0))
        return results

    def __enter__(self) -> Self:
        self._engine.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._engine.__exit__(kind, error, trace)
