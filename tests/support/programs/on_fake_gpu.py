"""What happens when calibration computes on another device? Whole runs on one that is made of Python; facts as JSON.

Usage: ``python -m tests.support.programs.on_fake_gpu FOLDER``. A process of its own: torch forgets no device.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from gacq_deploy.artifact.artifact import CalibrationArtifact, load_artifact
from gacq_deploy.calibration import budget, stage
from gacq_deploy.calibration.cost.memory import Counts, gpu_bytes
from gacq_deploy.calibration.session import Session
from gacq_deploy.errors import RecipeError
from gacq_deploy.progress import SILENT, Reporter, SilentReporter
from gacq_deploy.recipe.load import load_recipe
from gacq_deploy.run_directory import RunDirectory
from tests.support import fake_gpu
from tests.support.models.one_level import MIDDLE, ONE_LEVEL
from tests.support.models.pipelines import make_dit, make_pixart_alpha
from tests.support.models.tiny import save_model, tiny_unet

_SMALL = (
    "samples={trajectories: 3, steps: 3, validation_share: 0.34, batch: 3}",
    "calibration.threads=1",
    "calibration.reconstruction={iterations: 4, batch: 4}",
    "calibration.polish={steps: 4, batch: 4, save_every: 2}",
    "parity.probe={trajectories: 1, local_samples: 2}",
)
CARD_MB = 8192
_NEAREST = ("calibration.reconstruction.iterations=0", "calibration.polish.steps=0")


def _weighting(stages: str) -> str:
    numbers = "groups: 2, batch: 4, validation_batch: 2, iterations: 1, polish_iterations: 2"
    return f"calibration.weighting={{mode: gac, stages: [{stages}], {numbers}}}"


@dataclass(frozen=True)
class _Run:
    """One calibration: who makes the model, its recipe, which stages learn weights, and what else is asked."""

    make: Callable[[Path], object]
    recipe: str
    stages: str
    more: tuple[str, ...] = ()


RUNS = {
    "unet": _Run(lambda f: save_model(tiny_unet(**ONE_LEVEL), f), "unet-w8a8", "reconstruction", (MIDDLE,)),
    "dit": _Run(make_dit, "dit-w8a8", "polish"),
    "pixart": _Run(make_pixart_alpha, "pixart-w8a8", "polish"),
}


class _Stages(SilentReporter):
    """Counts what waits in every stage of a run, by the package's function."""

    def __init__(self) -> None:
        self.waits: dict[str, Counter[str]] = defaultdict(Counter)
        self.peaks: dict[str, int] = {}
        self.alive: dict[str, int] = {}
        """Bytes when a stage ends."""
        self._name = "before"

    def stage(self, name: str, total: int, costs: Any = ()) -> None:
        self.close()
        self._name = name

    def close(self) -> None:
        """End the running stage."""
        for line, kinds in fake_gpu.LEDGER.waits.items():
            self.waits[self._name][line.rpartition(" ")[0]] += sum(kinds.values())
        ledger = fake_gpu.LEDGER
        self.peaks[self._name] = max(ledger.peak, self.peaks.get(self._name, 0))
        self.alive[self._name] = ledger.alive
        ledger.restart()


@contextmanager
def _device(name: str) -> Iterator[None]:
    with (
        mock.patch.object(stage, "find_device", return_value=torch.device(name)),
        mock.patch.object(budget, "card_mb", return_value=CARD_MB),
    ):
        yield


@contextmanager
def _foreseeing(said: list[float]) -> Iterator[None]:
    """Note what is foreseen of the GPU's memory when a session begins, the driver's own part left out."""

    def begin(*args: Any) -> Session:
        session = Session(*args)
        counts = Counts(
            session.recipe,
            session.denoiser,
            session.graph,
            session.plan,
            session.trajectories.branches,
            len(session.split.training),
            len(session.split.held_out),
            session.memory_mb,
        )
        said.append(gpu_bytes(counts) - budget.CONTEXT_MB * 2**20)
        return session

    with mock.patch.object(stage, "Session", begin):
        yield


def _calibrate(
    directory: Path, name: str, device: str, *more: str, report: Reporter = SILENT
) -> CalibrationArtifact:
    run, model = RUNS[name], directory.parent / "models" / name
    if not model.exists():
        run.make(model)
    recipe = load_recipe(
        run.recipe, [f"model.source={model}", *_SMALL, _weighting(run.stages), *run.more, *more]
    )
    with _device(device):
        return stage.calibrate(recipe, RunDirectory(directory), report=report)


def _whole(folder: Path, name: str) -> dict[str, Any]:
    """Calibrate on the device, in every stage."""
    fake_gpu.LEDGER.restart()
    report = _Stages()
    said: list[float] = []
    with _foreseeing(said):
        artifact = _calibrate(folder / name, name, fake_gpu.DEVICE, report=report)
    report.close()
    ledger = fake_gpu.LEDGER
    return {
        "blocks": len(artifact.history),
        "polish": artifact.polish is not None,
        "recipe": {k: artifact.recipe["calibration"].get(k) for k in ("device", "gpu_memory_mb")},
        "waits": report.waits,
        "peaks": report.peaks,
        "said": said[0],
        "between": report.alive,
        "left": ledger.alive,
    }


def _nearest(folder: Path) -> dict[str, Any]:
    """Compare ranges and nearest codes with the CPU's."""
    here = _calibrate(folder / "cpu", "dit", "cpu", *_NEAREST)
    there = _calibrate(folder / "gpu", "dit", fake_gpu.DEVICE, *_NEAREST)
    scales = [float(np.max(np.abs(p.scale / there.params[s].scale - 1))) for s, p in here.params.items()]
    codes = [(p.codes, there.params[s].codes) for s, p in here.params.items() if p.codes is not None]
    return {
        "scales": max(scales),
        "other_codes": sum(int(np.count_nonzero(a != b)) for a, b in codes),
        "codes": sum(a.size for a, _ in codes),
        "farthest": max(int(np.abs(a.astype(int) - b).max()) for a, b in codes),
    }


def _elsewhere(folder: Path) -> dict[str, Any]:
    """Ask again on the other kind of device for what was calibrated on a CPU: finished, and not."""
    done = load_artifact(folder / "cpu" / "artifact")
    again = _calibrate(folder / "cpu", "dit", fake_gpu.DEVICE, *_NEAREST)
    shutil.rmtree(folder / "cpu" / "artifact")
    try:
        _calibrate(folder / "cpu", "dit", fake_gpu.DEVICE, *_NEAREST)
    except RecipeError as error:
        refusal = f"{error.message} {error.hint}"
    return {"finished": again.manifest_digest == done.manifest_digest, "refusal": refusal}


def main(folder: Path) -> None:
    """Run everything and print the facts."""
    fake_gpu.install()
    facts = {name: _whole(folder, name) for name in RUNS} | {"nearest": _nearest(folder)}
    facts["elsewhere"] = _elsewhere(folder)
    sys.stdout.write(f"{json.dumps(facts)}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
