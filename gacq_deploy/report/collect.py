"""What stands in this run directory, and what does not? Records as they are on disk; nothing is computed here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from gacq_deploy.artifact.artifact import load_artifact, load_model_record
from gacq_deploy.artifact.diagnostics import Diagnostics
from gacq_deploy.artifact.records import ModelRecord
from gacq_deploy.bench import BenchReport, load_bench
from gacq_deploy.build_trt.manifest import EngineManifest, engines_of
from gacq_deploy.errors import ArtifactError, GacqError, shell_command
from gacq_deploy.export.record import ExportRecord, read_record
from gacq_deploy.inspection.artifact import Inspection, inspect_artifact
from gacq_deploy.inspection.page import digest_page
from gacq_deploy.inspection.verify import VerifyReport, verify_records
from gacq_deploy.parity.report import ParityReport, load_report
from gacq_deploy.progress import SILENT, Reporter
from gacq_deploy.recipe.sections import Recipe
from gacq_deploy.report.pictures import Pictures, make_pictures, read_sheet
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.sensitivity import SensitivityReport, load_sensitivity

FileT = TypeVar("FileT")
_NAMES = {"artifact": "artifact", "onnx": "exported graph", "engines": "TensorRT engine"}
"""Folder, or folder of a manifest -> what lies there."""


@dataclass(frozen=True)
class Missing:
    """Why a part of the page has no data, and what would make it."""

    reason: str
    remedy: str


@dataclass(frozen=True)
class Collected:
    """A run directory as plain data. Records may be stale: ``chain`` says which."""

    run: RunDirectory
    chain: VerifyReport
    recipe: Recipe | Missing
    model: ModelRecord | Missing
    inspection: Inspection | Missing
    diagnostics: Diagnostics | Missing
    export: ExportRecord | Missing
    compiled: tuple[EngineManifest, ...] | Missing
    parity: ParityReport | Missing
    bench: BenchReport | Missing
    sensitivity: SensitivityReport | Missing
    pictures: Pictures | Missing
    shows: str
    """Digest of what the page is made from: see :mod:`gacq_deploy.inspection.page`."""


def collect(
    run: RunDirectory, *, images: bool = True, pipeline: str | None = None, report: Reporter = SILENT
) -> Collected:
    """Read every record of ``run``; one that is absent or damaged becomes :class:`Missing`.

    Args:
        run: the directory.
        images: make the same images with the float and the INT8 graph; else a picture that lies there is shown.
        pipeline: folder or hub id of the pipeline that decodes latents, where it is no longer where the recipe
            found it.
        report: hears of progress.

    Raises:
        ArtifactError: ``run`` is no run directory at all.
    """
    chain = verify_records(run)
    manifest = run.artifact / "manifest.json"
    calibrate = shell_command("calibrate", "-r", run.recipe_path, "-o", run.root)
    return Collected(
        run=run,
        chain=chain,
        recipe=_read(run.load_recipe),
        model=_read_file(manifest, calibrate, lambda: load_model_record(run.artifact)),
        inspection=_read_file(manifest, calibrate, lambda: inspect_artifact(run.artifact)),
        diagnostics=_read_file(manifest, calibrate, lambda: _diagnostics(run)),
        export=_read_file(
            run.onnx_manifest, shell_command("export", "--onnx", run.root), lambda: read_record(run)
        ),
        compiled=_read_file(run.engines, shell_command("build-trt", run.root), lambda: _engines(run)),
        parity=_read_file(
            run.parity_json, shell_command("parity", run.root), lambda: load_report(run.parity_json)
        ),
        bench=_read_file(
            run.bench_json, shell_command("bench", run.root), lambda: load_bench(run.bench_json)
        ),
        sensitivity=_read_file(
            run.sensitivity_json, shell_command("sensitivity", run.root), lambda: load_sensitivity(run)
        ),
        pictures=_pictures(run, chain, images=images, pipeline=pipeline, report=report),
        shows=digest_page(run, chain.document(), images=images),
    )


def _read(load: Callable[[], FileT]) -> FileT | Missing:
    try:
        return load()
    except GacqError as error:
        return Missing(error.message, error.hint)


def _read_file(path: Path, command: str, load: Callable[[], FileT]) -> FileT | Missing:
    """Return what ``load`` reads at ``path``; what was never made names the command that makes it."""
    if not path.exists():
        what = _NAMES.get(path.name) or _NAMES.get(path.parent.name, path.name)
        return Missing(f"There is no {what} yet.", f"Run `{command}`.")
    return _read(load)


def _diagnostics(run: RunDirectory) -> Diagnostics:
    diagnostics = load_artifact(run.artifact).diagnostics
    if diagnostics is None:
        raise ArtifactError(
            "The artifact holds no diagnostics: nothing says what calibration did with each sample.",
            f"Run `{shell_command('calibrate', '-r', run.recipe_path, '-o', run.beside)}`.",
        )
    return diagnostics


def _engines(run: RunDirectory) -> tuple[EngineManifest, ...]:
    return tuple(record for _, record in engines_of(run))


def _pictures(
    run: RunDirectory, chain: VerifyReport, *, images: bool, pipeline: str | None, report: Reporter
) -> Pictures | Missing:
    missing = Missing(
        "Images were left out.", f"Run `{shell_command('report', run.root)}` without --no-images."
    )
    if images and not run.onnx_manifest.exists():
        export = shell_command("export", "--onnx", run.root)
        missing = Missing("There is no exported graph to make images with yet.", f"Run `{export}`.")
    elif images:
        try:
            return make_pictures(run, pipeline=pipeline, report=report)
        except GacqError as error:
            report.note(f"no images: {error.message}")
            missing = Missing(error.message, error.hint)
    drawn = any(link.name == "comparison" and link.status == "ok" for link in chain.links)
    sheet = _read(lambda: read_sheet(run.comparison_png)) if drawn else missing
    return missing if isinstance(sheet, Missing) else sheet
