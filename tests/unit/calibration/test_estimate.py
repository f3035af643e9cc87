"""The estimate is near what happens, and nothing is written for it."""

from __future__ import annotations

import time
from pathlib import Path

from gacq_deploy.calibration.calibrate import calibrate
from gacq_deploy.calibration.estimate import estimate_calibration
from gacq_deploy.recipe import load_recipe
from gacq_deploy.run_directory import RunDirectory

SETTINGS = (
    "model.source=builtin:digits8",
    "samples.trajectories=16",
    "samples.steps=10",
    "calibration.reconstruction.iterations=40",
    "calibration.weighting.iterations=1",
    "calibration.weighting.polish_iterations=2",
    "calibration.polish.steps=10",
    "calibration.threads=1",
    "parity.probe={trajectories: 2, local_samples: 2}",
)


def test_counts_are_exact_and_costs_are_of_the_right_size(tmp_path: Path) -> None:
    recipe = load_recipe("fashion-w4a8", SETTINGS)
    estimate = estimate_calibration(recipe)
    started, largest = time.perf_counter(), 0

    class Watch:
        def stage(self, name: str, total: int) -> None: ...

        def note(self, text: str) -> None: ...

        def advance(self, n: int = 1, **values: float) -> None:
            nonlocal largest
            largest = max(largest, sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file()))

    artifact = calibrate(recipe, RunDirectory(tmp_path), report=Watch())
    seconds = time.perf_counter() - started
    assert estimate.samples == 150
    assert estimate.validation_samples == 10
    assert len(estimate.sites) == len(artifact.plan)
    assert estimate.quantized_modules == len(artifact.plan.modules)
    assert list(estimate.blocks) == [h.name for h in artifact.history]
    # an order-of-magnitude guard only: the machine's load decides the rest
    assert 0.1 < estimate.seconds / seconds < 10
    assert 0.5 < estimate.disk_mb / (largest / 2**20) < 2
