"""`export`: from artifact to ONNX graphs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gacq_deploy.engines.catalogue import TARGETS
from gacq_deploy_cli.console import NextStep, Output
from gacq_deploy_cli.options import (
    NameOf,
    common,
    needs_extra,
    python_option,
    run_directory_argument,
    with_output,
)
from gacq_deploy_cli.table import Table
from gacq_deploy_cli.units import counted, size

if TYPE_CHECKING:
    from gacq_deploy.export.record import ExportRecord
    from gacq_deploy.run_directory import RunDirectory


@click.command(short_help="Write float and INT8 ONNX graphs.")
@run_directory_argument
@click.option(
    "--onnx",
    is_flag=True,
    expose_value=False,
    help="Write ONNX graphs: the one format there is, and the default.",
)
@click.option(
    "--target",
    "targets",
    type=NameOf(TARGETS),
    multiple=True,
    help="Engine to write the graph for, repeatable; default: the recipe's, which are all.",
)
@python_option
@common
@with_output
def export(output: Output, directory: Path, targets: tuple[str, ...], allow_python: bool) -> None:
    """Write float.onnx and the Q/DQ graphs, lint them, and check them in ONNX Runtime.

    Finished, the same command does nothing. A failure leaves the graphs of an earlier export as they were.
    """
    from gacq_deploy.run_directory import RunDirectory

    run = RunDirectory(directory)
    with needs_extra("calibrate", "export"), output.progress() as report:
        from gacq_deploy.export.stage import export_onnx

        record = export_onnx(run, targets=targets or None, allow_python=allow_python, report=report)
    output.emit(record.model_dump(mode="json", by_alias=True), *_tables(run, record))


def _tables(run: RunDirectory, record: ExportRecord) -> tuple[Table | NextStep | str, ...]:
    files = [_file_row(run.onnx, record, name) for name in record.files]
    lint = [(c.file, c.target, c.error, c.warn, c.info) for c in record.lint]
    return (
        Table(
            f"export of artifact {record.artifact_sha256[:12]}",
            ["file", "size", "quantized tensors", "self-check"],
            files,
        ),
        "self-check: float.onnx against torch, Q/DQ graphs against float.onnx (relative error on the probe)",
        Table("lint", ["file", "engine", "errors", "warnings", "infos"], lint),
        _summary(record),
        NextStep(("parity", run.root)),
    )


def _summary(record: ExportRecord) -> str:
    """Return sizes and lint in one sentence."""
    from gacq_deploy.engines.catalogue import FLOAT

    exact = record.bytes_of(FLOAT)
    sizes = [f"{FLOAT} {size(exact)}"]
    for name in record.graphs:
        if name != FLOAT:
            count = record.bytes_of(name)
            sizes.append(f"{name} {size(count)} ({exact / count:.1f}x smaller)")
    errors, warnings = (sum(getattr(check, kind) for check in record.lint) for kind in ("error", "warn"))
    lint = "lint clean"
    if errors or warnings:
        lint = f"lint: {counted(errors, 'error')}, {counted(warnings, 'warning')}"
    return f"{', '.join(sizes)}; {lint}."


def _file_row(folder: Path, record: ExportRecord, name: str) -> tuple[object, ...]:
    error = record.self_check.get(name)
    return (
        folder / name,
        size(record.files[name].bytes),
        record.quantized_sites.get(name, ""),
        "" if error is None else f"{error:.2e}",
    )
