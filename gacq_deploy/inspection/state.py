"""How far is each run in a folder, and what is the next command for it? Records are read; only graphs are digested."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from gacq_deploy.artifact.artifact import load_head
from gacq_deploy.bench import load_bench
from gacq_deploy.build_trt.manifest import engines_of
from gacq_deploy.errors import ArtifactError, GacqError, UsageError
from gacq_deploy.export.record import read_record
from gacq_deploy.inspection.commands import RunPart, command_for, words_for
from gacq_deploy.inspection.page import why_of_other_records
from gacq_deploy.parity.report import load_report
from gacq_deploy.progress import SILENT, Reporter
from gacq_deploy.recipe.presets import preset_of
from gacq_deploy.recipe.sections import Recipe
from gacq_deploy.run_directory import RunDirectory, find_runs
from gacq_deploy.sensitivity import load_sensitivity
from gacq_deploy.storage.lock import LOCK_NAME, lock_holder

StageStatus = Literal["absent", "done", "failed", "stale", "damaged"]
_NEEDED: tuple[RunPart, ...] = ("artifact", "graphs", "parity", "bench", "report")
"""What a run has in the end, in the order in which it is made."""


@dataclass(frozen=True)
class RunStage:
    """One part of a run: whether it is there, and in ``detail`` what it is, or what is wrong with it."""

    name: str
    status: StageStatus
    detail: str


@dataclass(frozen=True)
class RunState:
    """One run as it lies there."""

    directory: str
    model: str
    """Where the recipe takes it from; "" where there is no valid recipe."""
    recipe: str
    preset: str | None
    """Whose effort the recipe asks for; None: of no preset."""
    stages: tuple[RunStage, ...]
    bytes: int
    """Of all its files."""
    written: str
    """When the newest file was written, ISO 8601, UTC."""
    holder: str | None
    """Id of the process that works in it now."""
    following: RunPart | None
    """What comes next; None while a process works in it."""

    @property
    def reached(self) -> tuple[str, ...]:
        """What is there, in words, in order: ``parity FAILED``, ``bench (stale)``."""
        there = [stage for stage in self.stages if stage.status != "absent"]
        return tuple(_words(stage) for stage in there) or ("nothing yet",)

    @property
    def problems(self) -> tuple[RunStage, ...]:
        """What is stale or damaged."""
        return tuple(stage for stage in self.stages if stage.status in ("stale", "damaged"))

    @property
    def next_words(self) -> tuple[str, ...]:
        """The words of the command that brings it one step further; none while a process works in it."""
        return () if self.following is None else words_for(self.following, RunDirectory(self.directory))

    def document(self) -> dict[str, Any]:
        """Return plain JSON data; ``next`` is the command that brings it one step further, "" for none."""
        run = RunDirectory(self.directory)
        document = asdict(self)
        following = document.pop("following")
        return {**document, "next": "" if following is None else command_for(following, run)}


def list_runs(folder: Path, report: Reporter = SILENT) -> tuple[RunState, ...]:
    """Return the state of every run in ``folder`` and a few folders below it, by path.

    Args:
        folder: the folder, or one run.
        report: hears of each run.

    Raises:
        UsageError: there is no such folder.
    """
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "is not there"
        raise UsageError(
            f"The folder {folder} {what}, so it holds no runs.",
            "Name a folder that holds runs; `gacq-deploy quickstart` makes a first one in runs/quickstart.",
        )
    runs = find_runs(folder)
    report.stage("read runs", len(runs))
    states = []
    for run in runs:
        states.append(state_of(run))
        report.advance()
    return tuple(states)


def state_of(run: RunDirectory) -> RunState:
    """Return how far one run is; what cannot be read counts as damaged, with the reason."""
    holder = lock_holder(run.root)
    size, newest = _extent(run.root)
    try:
        recipe = run.load_recipe()
    except GacqError as error:
        name, model, preset = "", "", None
        stages: tuple[RunStage, ...] = (RunStage("recipe", "damaged", error.message),)
        following: RunPart = "recipe"
    else:
        name, model, preset = recipe.name, recipe.model.source, preset_of(recipe)
        stages = tuple(_stages(run, recipe))
        following = _next_part(stages)
    return RunState(
        directory=str(run.root),
        model=model,
        recipe=name,
        preset=preset,
        stages=stages,
        bytes=size,
        written=datetime.fromtimestamp(newest, UTC).isoformat(timespec="seconds"),
        holder=holder,
        following=None if holder else following,
    )


@dataclass(frozen=True)
class _Found:
    words: str
    why_stale: str | None = None
    failed: bool = False


def _stages(run: RunDirectory, recipe: Recipe) -> Iterator[RunStage]:
    decisive = recipe.decisive()
    readers: Mapping[str, tuple[Path, Callable[[], _Found]]] = {
        "samples": (run.samples_record_path, lambda: _Found("samples")),
        "artifact": (run.artifact / "manifest.json", lambda: _artifact(run, decisive)),
        "graphs": (run.onnx_manifest, lambda: _graphs(run)),
        "engines": (run.engines, lambda: _engines(run)),
        "parity": (run.parity_json, lambda: _parity(run)),
        "bench": (run.bench_json, lambda: _Found("bench", load_bench(run.bench_json).why_stale(run))),
        "sensitivity": (
            run.sensitivity_json,
            lambda: _Found("sensitivity", load_sensitivity(run).why_stale(run)),
        ),
        "report": (run.report_html, lambda: _Found("report", why_of_other_records(run))),
    }
    for name, (path, read) in readers.items():
        yield _stage(name, read) if path.exists() else RunStage(name, "absent", "")


def _stage(name: str, read: Callable[[], _Found]) -> RunStage:
    try:
        found = read()
    except GacqError as error:
        return RunStage(name, "damaged", error.message)
    if found.why_stale is not None:
        return RunStage(name, "stale", found.why_stale)
    return RunStage(name, "failed" if found.failed else "done", found.words)


def _artifact(run: RunDirectory, recipe: Mapping[str, Any]) -> _Found:
    return _Found("calibrated", load_head(run.artifact).why_stale(recipe))


def _graphs(run: RunDirectory) -> _Found:
    record = read_record(run)
    for name in record.files:
        if not (run.onnx / name).is_file():
            raise ArtifactError(f"Exported file is missing: {run.onnx / name}")
    return _Found("exported", record.why_stale(run))


def _engines(run: RunDirectory) -> _Found:
    export = read_record(run)
    engines = list(engines_of(run))
    stale = [why for _, engine in engines if (why := engine.why_stale(export)) is not None]
    words = "1 engine" if len(engines) == 1 else f"{len(engines)} engines"
    return _Found(words, stale[0] if stale else None)


def _parity(run: RunDirectory) -> _Found:
    found = load_report(run.parity_json)
    words = "parity passed" if found else "parity FAILED"
    return _Found(words, found.why_stale(run), failed=not found)


def _next_part(stages: tuple[RunStage, ...]) -> RunPart:
    status = {stage.name: stage.status for stage in stages}
    for part in _NEEDED:
        if status[part] == "failed":
            # what the failure is made of, before the figures of what is not to be shipped
            return "report" if status["sensitivity"] == "done" else "sensitivity"
        if status[part] != "done":
            return part
    return "images"


def _words(stage: RunStage) -> str:
    return f"{stage.name} ({stage.status})" if stage.status in ("stale", "damaged") else stage.detail


def _extent(root: Path) -> tuple[int, float]:
    """Return the bytes of all files below ``root``, and when the newest was written."""
    size, newest = 0, root.stat().st_mtime
    for folder, _, names in os.walk(root):
        for name in names:
            try:
                stat = Path(folder, name).lstat()
            except FileNotFoundError:
                continue  # a process works here
            size += stat.st_size
            if name != LOCK_NAME:
                newest = max(newest, stat.st_mtime)
    return size, newest
