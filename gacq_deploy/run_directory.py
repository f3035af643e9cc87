"""What lies where in a run directory?"""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from gacq_deploy.errors import ArtifactError, did_you_mean, quoted
from gacq_deploy.recipe.load import load_recipe
from gacq_deploy.recipe.sections import Recipe
from gacq_deploy.storage.search import SEARCH_DEPTH, find_holders

_RECIPE = "recipe.yaml"
"""By it a folder is known as a run directory: calibration writes it first."""
_SHOWN = 5
"""Runs that a message names."""


@dataclass(frozen=True, init=False)
class RunDirectory:
    """The paths of one run; nothing is created or read until asked."""

    root: Path

    def __init__(self, root: str | PathLike[str]) -> None:
        object.__setattr__(self, "root", Path(root))

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
    def report_html(self) -> Path:
        """Everything above on one page."""
        return self.root / "report.html"

    def require(self) -> None:
        """Refuse a path that is no run directory before anything is locked or written there.

        Raises:
            ArtifactError: it is none; the message says what it is, and names the runs that it holds.
        """
        if not self.recipe_path.is_file():
            what, hint = describe_other(self.root)
            raise ArtifactError(f"{self.root} is not a run directory: {what}.", hint)

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


def find_runs(folder: Path, depth: int = SEARCH_DEPTH) -> tuple[RunDirectory, ...]:
    """Return the runs in a folder and down to ``depth`` folders below it, by path; itself where it is one."""
    return tuple(map(RunDirectory, find_holders(folder, _RECIPE, depth)))


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
