"""Which files of a run does no record vouch for, and why not?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from gacq_deploy.artifact.artifact import ARTIFACT_FILES
from gacq_deploy.build_trt.manifest import MANIFEST, ORDER, read_manifest
from gacq_deploy.calibration.checkpoint import load_checkpoint
from gacq_deploy.errors import ArtifactError
from gacq_deploy.export.record import EXPORT_FILES, read_record
from gacq_deploy.origin.signature import load_signature
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.storage.files import TEMP_PREFIX
from gacq_deploy.storage.lock import LOCK_NAME


def other_files(run: RunDirectory) -> Iterator[tuple[Path, str]]:
    """Yield every file of a run that no record names, with the reason, by path; links are not followed."""
    named = set(_named(run))
    for path in sorted(run.root.rglob("*")):
        if path not in named and (path.is_symlink() or not path.is_dir()):
            yield path, _reason(run, path)


def checkpoints_of(run: RunDirectory) -> tuple[Path, Path]:
    """Return where finished steps are recorded: those of the blocks, and those of the polish."""
    return run.work / "checkpoint.json", run.work / "polish" / "checkpoint.json"


def _reason(run: RunDirectory, path: Path) -> str:
    if path.is_symlink():
        return "a link"
    if any(part.startswith(TEMP_PREFIX) for part in path.relative_to(run.root).parts):
        return "being written, or left by a command that was killed: the next one removes it"
    if path.is_relative_to(run.model):
        return "of the pipeline as it was given: export compares the weights with those that were calibrated"
    if path.name.startswith(f"{run.recipe_path.name}."):
        return "an earlier recipe"
    return "no record names it"


def _named(run: RunDirectory) -> Iterator[Path]:
    yield from (run.mark, run.root / LOCK_NAME, run.recipe_path, run.samples_path, run.samples_record_path)
    yield from (run.parity_json, run.bench_json, run.sensitivity_json, run.report_html)
    yield from (run.comparison_json, run.comparison_png)
    for path in checkpoints_of(run):
        yield path
        yield from _beside(path, partial(_step_files, path))
    manifest = run.artifact / "manifest.json"
    yield manifest
    yield from _beside(manifest, lambda: ARTIFACT_FILES)
    yield run.onnx_manifest
    yield from _beside(run.onnx_manifest, lambda: read_record(run).files, EXPORT_FILES)
    yield run.signature_json
    yield from _beside(run.signature_json, lambda: load_signature(run).files)
    yield run.engines / ORDER
    for path in run.engines.glob(f"*/{MANIFEST}"):
        yield path
        yield from _beside(path, partial(_engine_files, path.parent))


def _step_files(checkpoint: Path) -> list[str]:
    return [step.file for step in load_checkpoint(checkpoint).steps.values()]


def _engine_files(folder: Path) -> list[str]:
    return list(read_manifest(folder, "").files)


def _beside(path: Path, names: Callable[[], Iterable[str]], otherwise: Iterable[str] = ()) -> Iterator[Path]:
    """Yield what a record names beside it; of one that cannot be read, which is a fault of its own, what it may."""
    try:
        found = list(names()) if path.is_file() else []
    except ArtifactError:
        found = list(otherwise)
    yield from map(path.parent.joinpath, found)
