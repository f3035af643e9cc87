"""What lies where in a run directory?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from os import PathLike
from pathlib import Path

from gacq_deploy.errors import ArtifactError, UsageError, did_you_mean, quoted
from gacq_deploy.recipe.load import load_recipe
from gacq_deploy.recipe.sections import Recipe
from gacq_deploy.storage.documents import read_json
from gacq_deploy.storage.files import TEMP_PREFIX, disk_error, write_json
from gacq_deploy.storage.lock import LOCK_NAME, lock_directory
from gacq_deploy.storage.outputs import is_text, require_path
from gacq_deploy.storage.search import SEARCH_DEPTH, find_holders

_RECIPE = "recipe.yaml"
"""By it a folder is known as a run directory: calibration writes it first."""
_MARK, _SCHEMA = ".gacq-run", "gacq-deploy/run/1"
"""The file that says a folder is ours to write in, and what it holds."""
_OURS = "gacq-deploy/"
"""With this every schema of ours begins."""
_EMPTY = {"lost+found", ".gitkeep", ".gitignore", LOCK_NAME}
"""What may lie in a folder that counts as empty."""
_SHOWN = 5
"""Runs, or names, that a message lists."""


@dataclass(frozen=True, init=False)
class RunDirectory:
    """The paths of one run; nothing is created or read until asked."""

    root: Path

    def __init__(self, root: str | PathLike[str]) -> None:
        """Take a path; an empty one would be the working directory.

        Raises:
            UsageError: it is empty, or holds bytes that are no UTF-8.
        """
        require_path(os.fspath(root))
        object.__setattr__(self, "root", Path(root))

    @property
    def mark(self) -> Path:
        """The file by which the directory is known as ours."""
        return self.root / _MARK

    @property
    def recipe_path(self) -> Path:
        """Resolved recipe."""
        return self.root / _RECIPE

    @property
    def samples_path(self) -> Path:
        """Calibration samples."""
        return self.root / "samples.safetensors"

    @property
    def samples_record_path(self) -> Path:
        """Digest of the samples and of what they were collected from."""
        return self.root / "samples.json"

    @property
    def work(self) -> Path:
        """Finished blocks and the activation cache; may be deleted, then calibrate starts over."""
        return self.root / "work"

    @property
    def model(self) -> Path:
        """The pipeline that was given as an object and lies nowhere else."""
        return self.root / "model"

    @property
    def artifact(self) -> Path:
        """What calibration learned."""
        return self.root / "artifact"

    @property
    def onnx(self) -> Path:
        """Exported graphs."""
        return self.root / "onnx"

    @property
    def float_onnx(self) -> Path:
        """Float graph."""
        return self.onnx / "float.onnx"

    @property
    def int8_onnx(self) -> Path:
        """Canonical Q/DQ graph (TensorRT, OpenVINO)."""
        return self.onnx / "int8.onnx"

    @property
    def cpu_onnx(self) -> Path:
        """Flavour for ONNX Runtime's integer kernels."""
        return self.onnx / "int8.cpu.onnx"

    @property
    def onnx_manifest(self) -> Path:
        """Digests of the exported graphs and of what they were made from."""
        return self.onnx / "manifest.json"

    @property
    def engines(self) -> Path:
        """Compiled engines, a folder each."""
        return self.root / "engines"

    @property
    def parity_json(self) -> Path:
        """Verdict of `parity`."""
        return self.root / "parity.json"

    @property
    def bench_json(self) -> Path:
        """Result of `bench`."""
        return self.root / "bench.json"

    @property
    def sensitivity_json(self) -> Path:
        """Result of `sensitivity`."""
        return self.root / "sensitivity.json"

    @property
    def comparison_png(self) -> Path:
        """The same images from the float and the INT8 graph, and their difference."""
        return self.root / "comparison.png"

    @property
    def comparison_json(self) -> Path:
        """Which graphs the comparison was drawn from, and its digest."""
        return self.root / "comparison.json"

    @property
    def signature_json(self) -> Path:
        """Who stands behind the files that production reads."""
        return self.root / "signature.json"

    @property
    def report_html(self) -> Path:
        """Everything above on one page."""
        return self.root / "report.html"

    def holds(self, path: Path) -> bool:
        """Tell whether a path lies in the run, wherever links lead."""
        return path.resolve().is_relative_to(self.root.resolve())

    def require(self) -> None:
        """Refuse a path that is no run directory before anything is locked or written there.

        Raises:
            ArtifactError: it is none; the message says what it is, and names the runs that it holds.
        """
        if not self.recipe_path.is_file():
            what, hint = describe_other(self.root)
            raise ArtifactError(f"{self.root} is not a run directory: {what}.", hint)

    @property
    def beside(self) -> Path:
        """A folder that is not there yet, for the run to be made again."""
        names = (self.root.with_name(f"{self.root.name}-{number}") for number in count(2))
        return next(path for path in names if not os.path.lexists(path))

    @property
    def is_marked(self) -> bool:
        """Whether it is ours to write in: by its mark, or by the artifact's manifest if it is older than marks."""
        return any(_is_ours(path) for path in (self.mark, self.artifact / "manifest.json"))

    def require_room(self) -> None:
        """Refuse a place for a new run where something lies that is not ours.

        Raises:
            UsageError: it is neither a run, nor empty, nor yet to be made; the message says what lies there.
        """
        if self.is_marked:
            return
        try:
            found = (
                sorted(entry.name for entry in os.scandir(self.root)) if os.path.lexists(self.root) else []
            )
        except OSError as error:
            raise disk_error(error, self.root) from error
        if names := [name for name in found if name not in _EMPTY and not name.startswith(TEMP_PREFIX)]:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            raise UsageError(
                f"{self.root} is not empty and no run of ours: it holds {', '.join(names[:_SHOWN])}{more}. Nothing was "
                "written.",
                f"Name a new folder, or an empty one: -o {quoted(self.root / 'run')}",
            )

    @contextmanager
    def writing(self, *, new: bool = False) -> Iterator[None]:
        """Hold the run for this process, which will write in it.

        Args:
            new: make it where there is none yet; :meth:`take` then marks it.

        Raises:
            ArtifactError: this is no run directory.
            UsageError: something lies there that is not ours, or it cannot be written.
            ResourceError: another process holds it.
        """
        if new:
            self.require_room()
        else:
            self.require()
            if not self.is_marked:
                raise ArtifactError(
                    f"{self.root} is not known as a run: {_MARK} is missing, and so is an artifact of ours.",
                    "Copy the run again with its hidden files, or calibrate into a new folder: "
                    f"gacq-deploy calibrate -r {quoted(self.recipe_path)} -o {quoted(self.root.with_name('new'))}",
                )
        with lock_directory(self.root, make=new):
            yield

    def take(self) -> None:
        """Mark the run as ours, before the first file is written in it.

        Raises:
            ResourceError: the disk is full.
            UsageError: the folder cannot be written.
        """
        if not _is_ours(self.mark):
            write_json(self.mark, {"schema": _SCHEMA})

    def load_recipe(self) -> Recipe:
        """Read the resolved recipe.

        Raises:
            ArtifactError: this is not a run directory.
            RecipeError: the saved recipe cannot be read, or was edited into something invalid.
        """
        self.require()
        return load_recipe(self.recipe_path)


AnyRun = RunDirectory | str | PathLike[str]
"""A run, or where it lies."""


def as_run(directory: AnyRun) -> RunDirectory:
    """Return the run that lies at a path."""
    return directory if isinstance(directory, RunDirectory) else RunDirectory(directory)


def refuse_own_file(path: Path, *, but: str = "") -> None:
    """Refuse to replace a file that a run made of itself with an output that was asked for by its path.

    Args:
        path: where the output is to be written.
        but: the name of the one that the command may replace.

    Raises:
        UsageError: the path is one of a run's own files.
    """
    run = RunDirectory(path.parent)
    own = {run.recipe_path, run.comparison_png, run.report_html}
    if path.name != but and path in own and run.is_marked:
        raise UsageError(
            f"{path} is a file of the run in {run.root}: it is not replaced by another.",
            "Choose another name.",
        )


def _is_ours(path: Path) -> bool:
    """Tell whether a file is JSON with a schema of ours."""
    try:
        schema = read_json(path, what="Mark", hint="").get("schema")
    except ArtifactError:
        return False
    return isinstance(schema, str) and schema.startswith(_OURS)


def find_runs(folder: Path, depth: int = SEARCH_DEPTH) -> tuple[RunDirectory, ...]:
    """Return the runs in a folder and down to ``depth`` folders below it, by path; itself where it is one.

    Those whose paths hold bytes that are no UTF-8 are left out: no command can take them.
    """
    return tuple(RunDirectory(path) for path in find_holders(folder, _RECIPE, depth) if is_text(path))


def describe_other(path: Path) -> tuple[str, str]:
    """Return what a path is that is no run directory, and what to do about it."""
    if path.is_file():
        return "it is a file", "Name the folder that holds recipe.yaml; `gacq-deploy list FOLDER` finds runs."
    calibrate = f"Run `gacq-deploy calibrate --model FOLDER -o {quoted(path)}` first."
    if not path.is_dir():
        near = [str(run.root) for run in find_runs(path.parent, depth=1)]
        return "there is no such folder", f"{did_you_mean(path, near)}{calibrate}"
    if runs := find_runs(path):
        return _counted(len(runs)), f"Name one of them: {_shown(runs)}."
    around = [folder for folder in path.resolve().parents if RunDirectory(folder).recipe_path.is_file()]
    if around:
        return f"it lies in the run {around[0]}", f"Name the run: {quoted(around[0])}."
    return f"it has no {_RECIPE}", calibrate


def _counted(count: int) -> str:
    return "it holds a run" if count == 1 else f"it holds {count} runs"


def _shown(runs: tuple[RunDirectory, ...]) -> str:
    names = [quoted(run.root) for run in runs[:_SHOWN]]
    more = len(runs) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")
