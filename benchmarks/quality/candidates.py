"""How does a row become a graph? Our own calibration here, foreign tools in their own files."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.quality.rows import GIVEN, NEAREST, NOTHING, PTQ4DM, TILTS, Row
from benchmarks.quality.weights import SkewedWeights, TiltedWeights
from gacq_deploy.artifact.artifact import CalibrationArtifact, load_artifact
from gacq_deploy.calibration.resume import ALGORITHM
from gacq_deploy.calibration.stage import calibrate
from gacq_deploy.calibration.weighting.sample_weights import SampleWeights
from gacq_deploy.errors import ResourceError
from gacq_deploy.export.cpu_flavour import to_cpu_flavour
from gacq_deploy.export.qdq import insert_qdq
from gacq_deploy.models.base import Denoiser
from gacq_deploy.models.trajectories.collect import DrawnTrajectories
from gacq_deploy.progress import SILENT
from gacq_deploy.recipe.sections import Recipe
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.storage.digests import digest_json
from gacq_deploy.storage.documents import read_json
from gacq_deploy.storage.files import write_json
from gacq_deploy.storage.lock import lock_directory

CANONICAL, CPU = "int8.onnx", "int8.cpu.onnx"


@dataclass(frozen=True)
class Candidate:
    """Graphs by name, what making them cost, and what else is worth knowing."""

    graphs: Mapping[str, onnx.ModelProto]
    cost: Mapping[str, float]
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Workshop:
    """Where things are kept: samples, run directories, caches; and the overrides of this run."""

    root: Path
    overrides: tuple[str, ...] = ()

    @property
    def cache(self) -> Path:
        """Folder of what any row may use."""
        return self.root / "cache"

    def recipe(self, row: Row) -> Recipe:
        """Return the row's recipe under this run's overrides; a row without a polish keeps none."""
        last = ["calibration.polish.steps=0"] if row.polish == NOTHING else []
        iterations = ["calibration.reconstruction.iterations=0"] if row.reconstruction in NEAREST else []
        return row.recipe([*self.overrides, *last, *iterations])

    def directory(self, row: Row) -> RunDirectory:
        """Return the row's run directory."""
        digest = digest_json({"recipe": self.recipe(row).calibration_digest, "algorithm": ALGORITHM})
        return RunDirectory(self.root / "rows" / f"{row.key.replace('|', '-')}-{digest[:8]}")

    def samples(self, recipe: Recipe, denoiser: Denoiser) -> tuple[RunDirectory, str]:
        """Return the directory with the samples of a model and seed, and their sha256; every row starts from them."""
        asked = {"samples": recipe.samples.model_dump(mode="json"), "model": denoiser.record.weights_sha256}
        directory = RunDirectory(self.root / "samples" / digest_json(asked)[:16])
        with patient_lock(directory.root):
            return directory, DrawnTrajectories(denoiser, recipe, directory).ensure_samples(SILENT)


@contextmanager
def patient_lock(path: Path, seconds: float = 7200) -> Iterator[None]:
    """Hold ``path``, waiting for another process that does: two of them may share samples and bases.

    Raises:
        ResourceError: it is still held after ``seconds``.
    """
    deadline = time.monotonic() + seconds
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(lock_directory(path, make=True))
                break
            except ResourceError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(1)
        yield


def peak_mb() -> float:
    """Return this process's largest resident memory; getrusage would also count its parent's."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def calibrated(row: Row, shop: Workshop, denoiser: Denoiser, graph: onnx.ModelProto) -> Candidate:
    """Calibrate a row of ours, from the finished blocks of its base if that was run before."""
    recipe, directory = shop.recipe(row), shop.directory(row)
    resumed = directory.work.is_dir()
    source, _ = shop.samples(recipe, denoiser)
    if not resumed:
        _start_from(source, directory, with_work=False)
        if row.base is not None:
            _start_from(shop.directory(row.base), directory, with_work=True)
    started = time.process_time()
    artifact = calibrate(recipe, directory, weights=_weights(row, denoiser))
    spent = {"cpu_s": time.process_time() - started, "peak_mb": peak_mb()}
    cost = _kept_cost(directory, artifact, None if resumed else spent)
    return Candidate(
        {
            CANONICAL: insert_qdq(graph, artifact, placement="input"),
            CPU: to_cpu_flavour(insert_qdq(graph, artifact, placement="output")),
        },
        cost or spent,
        {
            "resumed": cost is None,
            "base": None if row.base is None else row.base.key,
            "same_rounding_as_base": _same_rounding(row, shop, artifact),
            "effective_samples": [round(block.effective_samples, 1) for block in artifact.history],
        },
    )


def _kept_cost(
    directory: RunDirectory, artifact: CalibrationArtifact, spent: Mapping[str, float] | None
) -> Mapping[str, float] | None:
    """Return what the artifact cost, kept beside it; None if it was made in several sittings."""
    path, key = directory.root / "cost.json", artifact.build["work_key"]
    if spent is not None:
        write_json(path, {"work_key": key, "cost": dict(spent)})
    if not path.is_file():
        return None
    kept = read_json(path, what="Cost of a calibration", hint=f"Delete {path}.")
    return dict(kept["cost"]) if kept["work_key"] == key else None


def _weights(row: Row, denoiser: Denoiser) -> SampleWeights | None:
    """Return weights that no recipe can ask for; None leaves them to the recipe."""
    name = next((w for w in row.weightings if w in GIVEN), None)
    if name is None:
        return None
    # blocks weighted so: also in the polish, whether or not this row has one, so that both rows share their blocks
    stages = (row.reconstruction == name, row.polish in (name, NOTHING))
    if name == PTQ4DM:
        return SkewedWeights(denoiser.num_train_timesteps, row.seed, stages)
    return TiltedWeights(denoiser.num_train_timesteps, TILTS[name], stages)


def _start_from(source: RunDirectory, target: RunDirectory, *, with_work: bool) -> None:
    """Copy samples, and finished steps; a step counts in the new run only if its key still fits."""
    with ExitStack() as stack:
        stack.enter_context(patient_lock(target.root))
        if source.root.is_dir():
            stack.enter_context(patient_lock(source.root))
        for name in ("samples_path", "samples_record_path"):
            if getattr(source, name).is_file():
                shutil.copy2(getattr(source, name), getattr(target, name))
        if with_work and source.work.is_dir():
            shutil.copytree(source.work, target.work, dirs_exist_ok=True)


def _same_rounding(row: Row, shop: Workshop, artifact: CalibrationArtifact) -> bool | None:
    """Tell whether the row really has its base's weight codes: None without a base."""
    if row.base is None or not shop.directory(row.base).artifact.is_dir():
        return None
    base = load_artifact(shop.directory(row.base).artifact)
    sites: Sequence[Any] = [entry.site for entry in artifact.plan.of_role("weight")]
    pairs = [(artifact.params[s].codes, base.params[s].codes) for s in sites]
    return all(a is not None and b is not None and bool(np.array_equal(a, b)) for a, b in pairs)
