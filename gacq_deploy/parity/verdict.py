"""Did an engine fail its judgement on this machine? Whoever is about to run it asks here."""

from __future__ import annotations

from gacq_deploy.backends.processor import describe_processor
from gacq_deploy.errors import GateError
from gacq_deploy.export.record import ExportRecord
from gacq_deploy.parity.report import Comparison, ParityReport, gate_figures, load_report
from gacq_deploy.run_directory import RunDirectory

_SHOWN = 3


def require_not_failed(
    directory: RunDirectory,
    file: str,
    engine: str,
    *,
    export: ExportRecord | None = None,
    key: str | None = None,
) -> None:
    """Refuse an engine that ``parity.json`` failed here; what was not judged, or not here, is not refused.

    Args:
        directory: the run.
        file: the graph that would run.
        engine: the engine that would run it.
        export: the exported graphs; a report about others says nothing.
        key: instead, of a compiled engine; a report about another one says nothing.

    Raises:
        GateError: a gate that leads to this graph in this engine failed, or was not evaluated.
        ArtifactError: the report is damaged.
    """
    if not directory.parity_json.is_file():
        return
    report = load_report(directory.parity_json)
    if not _is_about(report, engine, export, key):
        return
    judged = (e for e in report.comparisons if e.subject in (file, f"{file}@{engine}"))
    lines = [line for comparison in judged if not comparison.passed for line in _why(comparison)]
    if lines:
        more = f"; and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
        raise GateError(
            f"{file} in {engine} failed parity on this machine: {'; '.join(lines[:_SHOWN])}{more}.",
            "Take an engine that passed, or calibrate with more effort. To run it all the same: --allow-failed "
            "(allow_failed=True in Python).",
        )


def _is_about(report: ParityReport, engine: str, export: ExportRecord | None, key: str | None) -> bool:
    if report.subject.get("processor") != describe_processor():
        return False
    if export is None:
        return report.engines.get(engine) == key
    return bool(report.subject.get("files") == {n: entry.sha256 for n, entry in export.files.items()})


def _why(comparison: Comparison) -> list[str]:
    names = [n for n in comparison.thresholds if comparison.metrics.get(n) is None or n in comparison.failed]
    return [gate_figures(comparison, name) for name in names]
