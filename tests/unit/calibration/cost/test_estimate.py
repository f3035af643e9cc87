"""The estimate is near what happens, and nothing is written for it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from gacq_deploy.calibration.cost.estimate import CalibrationEstimate, estimate_calibration
from gacq_deploy.calibration.polish import WEIGH
from gacq_deploy.calibration.stage import calibrate
from gacq_deploy.progress import SilentReporter
from gacq_deploy.recipe.load import load_recipe
from gacq_deploy.run_directory import RunDirectory

SETTINGS = (
    "model.source=builtin:digits8",
    "samples.trajectories=8",
    "samples.steps=5",
    "calibration.reconstruction.iterations=5",
    "calibration.weighting.iterations=1",
    "calibration.weighting.polish_iterations=2",
    "calibration.polish.steps=5",
    "calibration.threads=1",
    "parity.probe={trajectories: 2, local_samples: 2}",
)


def test_counts_are_exact_and_costs_are_of_the_right_size(tmp_path: Path) -> None:
    recipe = load_recipe("fashion-w4a8", SETTINGS)
    estimate = estimate_calibration(recipe)
    started, largest = time.process_time(), 0
    announced: list[str] = []
    units: list[list[int]] = []
    """Of each stage: in all, and done."""

    class Watch(SilentReporter):
        def stage(self, name: str, total: int, costs: Sequence[float] = ()) -> None:
            announced.append(name)
            units.append([total, 0])
            assert len(costs) in (0, total)

        def advance(self, n: int = 1, **values: float) -> None:
            nonlocal largest
            units[-1][1] += n
            largest = max(largest, sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file()))

    artifact = calibrate(recipe, RunDirectory(tmp_path), report=Watch())
    seconds = time.process_time() - started
    assert announced == [stage.name for stage in estimate.stages]
    assert all(total == done for total, done in units)
    assert dict(zip(announced, units, strict=True))[WEIGH][0] > 1, "the longest of all says how far it is"
    assert estimate.samples == 35
    assert estimate.validation_samples == 5
    assert len(estimate.sites) == len(artifact.plan)
    assert estimate.quantized_modules == len(artifact.plan.modules)
    assert list(estimate.blocks) == [h.name for h in artifact.history]
    # an order-of-magnitude guard only: calls this small cost more than their arithmetic
    assert 0.1 < estimate.seconds / seconds < 10
    assert 0.5 < estimate.disk_mb / (largest / 2**20) < 2


def estimated(*more: str) -> CalibrationEstimate:
    return estimate_calibration(load_recipe("fashion-w4a8", [*SETTINGS, *more]), enough_s=0.01)


def test_what_costs_time_and_memory_is_counted() -> None:
    # costs differ a hundredfold: the machine's load does not decide, and no call needs to be timed often
    bare = estimated("calibration.weighting.mode=uniform", "calibration.polish.steps=0")
    assert (bare.weights, bare.polish) == ("uniform", "none")
    polished = estimated("calibration.weighting.mode=uniform", "calibration.polish.steps=100000")
    assert polished.polish.startswith("100000 steps, activation scales")
    assert polished.seconds > 3 * bare.seconds
    learned = estimated("calibration.weighting.polish_iterations=9999")
    assert learned.weights == "gac, in polish"
    assert learned.seconds > 3 * bare.seconds
    assert learned.memory_mb > polished.memory_mb >= bare.memory_mb
    both = "calibration.weighting.stages=[reconstruction, polish]"
    blocks = estimated(both, "calibration.weighting.iterations=9999")
    assert blocks.weights == "gac, in reconstruction and polish"
    assert blocks.seconds > 3 * bare.seconds
    # every step's error is followed to the image: quadratic in the steps
    long = ("samples.steps=999", "samples.trajectories=2")
    images = estimated("calibration.objective=images", *long)
    assert images.seconds > 2 * estimated("calibration.objective=sqnr", *long).seconds
