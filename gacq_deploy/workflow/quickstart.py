"""How does a recipe become a verified engine in one go? Every stage in order, none of them twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from gacq_deploy.bench import BenchReport, load_bench, run_bench
from gacq_deploy.bench.measure import BENCH_STAGES, BenchSettings
from gacq_deploy.bench.stage import plan_graphs
from gacq_deploy.calibration.cost.estimate import CalibrationEstimate
from gacq_deploy.calibration.stage import calibrate
from gacq_deploy.engines.catalogue import CANONICAL, CPU, FLOAT, TARGETS
from gacq_deploy.errors import ArtifactError
from gacq_deploy.export.record import ExportRecord
from gacq_deploy.export.stage import EXPORT_STAGES, export_onnx
from gacq_deploy.parity import ParityReport, check_parity, load_report
from gacq_deploy.parity.candidates import candidates_of, stages_of
from gacq_deploy.parity.stage import installed_engines, judged_here, runnable_engines
from gacq_deploy.progress import SILENT, PlannedStage, Reporter
from gacq_deploy.recipe.sections import Recipe
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.workflow.picture import ensure_comparison

BENCH = BenchSettings(batches=(1, 8), threads=1, repeats=3, allow_failed=True)
"""Short, for a first look; `bench` measures longer."""
RecordT = TypeVar("RecordT")


@dataclass(frozen=True)
class Row:
    """One INT8 graph in one engine: what it costs and what it is worth. None was not measured."""

    engine: str
    file: str
    float_bytes: int
    int8_bytes: int
    speedup: dict[int, float]
    """Batch size -> CPU time of ``float.onnx`` in ONNX Runtime divided by that of this graph, median; with a step
    policy that of a trajectory."""
    eps_sqnr_db: float | None
    image_psnr_db: float | None
    image_ssim: float | None
    passed: bool
    """Every gate of every comparison that leads to this graph holds."""


@dataclass(frozen=True)
class ChainResult:
    """What the chain made, and which stages it found done."""

    artifact_sha256: str
    export: ExportRecord
    parity: ParityReport
    bench: BenchReport
    comparison: Path
    already_done: tuple[str, ...]

    @property
    def rows(self) -> tuple[Row, ...]:
        """One row for each INT8 graph and engine that was judged."""
        return tuple(self._row(*judged) for judged in self.parity.fidelity.items())

    def _row(self, candidate: str, metrics: Mapping[str, float | None]) -> Row:
        file, _, engine = candidate.partition("@")
        name, share = f"{engine}/{file}", self.parity.step_policy.float_share
        speeds = {b: self.bench.speed(name, b, share) for b in self.bench.batches}
        measured = {batch: speed for batch, speed in speeds.items() if speed is not None}
        judged = [e for e in self.parity.comparisons if e.subject in (file, f"{file}@{engine}")]
        passed = bool(judged) and all(comparison.passed for comparison in judged)
        return Row(
            engine=engine,
            file=file,
            float_bytes=self.export.bytes_of(FLOAT),
            int8_bytes=self.export.bytes_of(file),
            speedup=measured,
            eps_sqnr_db=metrics.get("eps_sqnr_db"),
            image_psnr_db=metrics.get("image_psnr_db"),
            image_ssim=metrics.get("image_ssim"),
            passed=passed,
        )


def run_chain(
    recipe: Recipe,
    directory: RunDirectory,
    *,
    fresh: bool = False,
    settings: BenchSettings | None = None,
    foresee: Callable[[CalibrationEstimate], None] | None = None,
    report: Reporter = SILENT,
) -> ChainResult:
    """Calibrate, export, judge, measure and draw; what is up to date is left alone.

    ``foresee`` is as for :func:`~gacq_deploy.calibration.stage.calibrate`.

    A failed parity does not stop it: the pictures and the figures say what the verdict is about.

    Raises:
        GacqError: what the stages raise.
    """
    settings = settings or BENCH
    records = {
        "calibrate": directory.artifact / "manifest.json",
        "export": directory.onnx_manifest,
        "parity": directory.parity_json,
        "bench": directory.bench_json,
        "comparison": directory.comparison_json,
    }
    before = {name: _content(path) for name, path in records.items()}
    engines = installed_engines()
    judged = candidates_of((CANONICAL, CPU), engines)
    # behind the calibration's own
    later = (*EXPORT_STAGES, *stages_of(judged), *BENCH_STAGES, "denoise", "denoise")
    report.plan([PlannedStage(name) for name in later])
    artifact = calibrate(recipe, directory, fresh=fresh, foresee=foresee, report=report)
    export = export_onnx(
        directory, targets=TARGETS, allow_python=not recipe.model.is_foreign_code, report=report
    )
    parity = _current_parity(directory, export, engines + runnable_engines(directory, export))
    if parity is None:
        parity = check_parity(directory, threads=recipe.calibration.threads, report=report)
    bench = _current_bench(directory, export, settings, engines)
    if bench is None:
        bench = run_bench(directory, settings=settings, report=report)
    ensure_comparison(directory, export, report)
    # a stage that had nothing to do leaves its record as it was, byte for byte
    done = tuple(name for name, path in records.items() if before[name] and before[name] == _content(path))
    return ChainResult(
        artifact_sha256=artifact.manifest_digest,
        export=export,
        parity=parity,
        bench=bench,
        comparison=directory.comparison_png,
        already_done=done,
    )


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def _unless_damaged(load: Callable[[Path], RecordT], path: Path) -> RecordT | None:
    """Return what ``load`` reads, or None for a record that is absent or damaged: a new one mends that."""
    try:
        return load(path)
    except ArtifactError:
        return None


def _current_parity(
    directory: RunDirectory, export: ExportRecord, engines: Sequence[str]
) -> ParityReport | None:
    """Return the saved report if it is not stale, and judged every graph in every engine."""
    found = _unless_damaged(load_report, directory.parity_json)
    if found is None or found.why_stale(directory) is not None:
        return None
    wanted, _ = judged_here(directory, candidates_of(export.graphs, engines))
    names = {candidate.name for candidate in wanted}
    return found if found.candidates == names else None


def _current_bench(
    directory: RunDirectory, export: ExportRecord, settings: BenchSettings, engines: Sequence[str]
) -> BenchReport | None:
    """Return the saved report if it is not stale, and measured every engine at least as long as asked."""
    found = _unless_damaged(load_bench, directory.bench_json)
    if found is None or found.why_stale(directory) is not None:
        return None
    graphs, _, _ = plan_graphs(directory.onnx, engines, export.graphs, ())
    measured = {candidate.name for candidate in found.candidates}
    if measured != {graph.name for graph in graphs}:
        return None
    same = (found.batches, found.threads) == (settings.batches, settings.threads)
    return found if same and found.repeats >= settings.repeats else None
