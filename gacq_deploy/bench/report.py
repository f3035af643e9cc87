"""What does a benchmark say, on disk and in memory?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from gacq_deploy.export.record import SubjectRecord, why_changed
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.storage.records import Record, load_sealed_record, shaped_by
from gacq_deploy.storage.sealed import write_sealed

FLOAT_GRAPH = "float.onnx"
BASELINE = f"ort-cpu/{FLOAT_GRAPH}"
"""What every candidate is compared with, beside the float graph in its own engine."""


class Spread(Record):
    """Median, quartiles and extremes over the rounds."""

    median: float
    q1: float
    q3: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarize at least one value."""
        low, q1, median, q3, high = (float(v) for v in np.percentile(values, [0, 25, 50, 75, 100]))
        return cls(median=median, q1=q1, q3=q3, low=low, high=high)


class Timing(Record):
    """One engine call at one batch size, in milliseconds."""

    batch: int
    wall_ms: Spread
    cpu_ms: Spread
    """CPU time of all threads of the process."""
    peak_bytes: int
    """Largest resident memory up to this batch size, above a process that only imported the library."""


class IntegerShare(Record):
    """How many of the planned layers run in integer kernels."""

    planned: int
    integer: int
    float_modules: tuple[str, ...]
    """Planned modules that run in float all the same."""

    @property
    def share(self) -> float:
        """Part of the planned layers that run in integers, 0 to 1."""
        return self.integer / self.planned if self.planned else 0.0


class BenchCandidate(Record):
    """One graph in one engine."""

    name: str
    """``<engine>/<file>``"""
    engine: str
    file: str
    label: str
    """What really ran, with version and device."""
    file_bytes: int
    load_seconds: float
    loaded_bytes: int
    """Largest resident memory while opening, above a process that only imported the library."""
    timings: tuple[Timing, ...]
    kernels: IntegerShare | None
    """None for a float graph."""


class Ratio(Record):
    """How many times faster ``candidate`` is than ``baseline``, from rounds in which both ran."""

    candidate: str
    baseline: str
    batch: int
    cpu: Spread
    wall: Spread


class Host(Record):
    """Where it was measured."""

    cpu: str
    cores: int
    platform: str
    python: str
    load_average: float
    """One-minute load when the benchmark began; 0 is a quiet machine."""


class BenchReport(Record):
    """What ``bench.json`` says."""

    schema_: Literal["gacq-deploy/bench/1"] = Field(default="gacq-deploy/bench/1", alias="schema")
    subject: Annotated[dict[str, Any], shaped_by(SubjectRecord)]
    """``artifact_sha256``: its digest; ``files``: graph -> sha256."""
    host: Host
    threads: int
    repeats: int
    batches: tuple[int, ...] = Field(min_length=1)
    candidates: tuple[BenchCandidate, ...]
    ratios: tuple[Ratio, ...]
    skipped: dict[str, str]
    """``<engine>/<file>`` -> why it was not measured."""

    def why_stale(self, directory: RunDirectory) -> str | None:
        """Return why this was not measured on what the run holds now; None: it was."""
        return why_changed(directory, self.subject)

    def save(self, path: Path) -> None:
        """Write it atomically, with its own digest."""
        write_sealed(path, self.model_dump(mode="json", by_alias=True))

    def ratio(self, candidate: str, baseline: str, batch: int) -> Ratio | None:
        """Return one comparison, or None when it was not measured."""
        wanted = (candidate, baseline, batch)
        return next((r for r in self.ratios if (r.candidate, r.baseline, r.batch) == wanted), None)

    def speed(self, candidate: str, batch: int, float_share: float = 0.0) -> float | None:
        """Return CPU time of ``float.onnx`` in ONNX Runtime over that of ``candidate``, median; None if not measured.

        With ``float_share`` of a trajectory's steps in the float graph of the candidate's own engine, it is the
        trajectory's.
        """
        engine = candidate.partition("/")[0]
        ratio = self.ratio(candidate, BASELINE, batch)
        baseline = self.ratio(candidate, f"{engine}/{FLOAT_GRAPH}", batch)
        if ratio is None or (float_share > 0 and baseline is None):
            return None
        slower = 1.0 if baseline is None else 1 + float_share * (baseline.cpu.median - 1)
        return ratio.cpu.median / slower


def load_bench(path: Path) -> BenchReport:
    """Read a saved report.

    Raises:
        ArtifactError: missing, not JSON, altered, or not a report of this schema.
    """
    hint = "Run `gacq-deploy bench` on the run directory again."
    return load_sealed_record(BenchReport, path, what="Benchmark report", hint=hint)
