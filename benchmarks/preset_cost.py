"""What does the cheapest preset cost beside the model's own float trajectories? CPU seconds, stage by stage.

``python -m benchmarks.preset_cost`` (two minutes on one core) calibrates the demo model and a small random Stable
Diffusion under ``nearest``, three seeds each, one thread, and divides the CPU seconds of all stages by those in which
the float model walks its trajectories; loading the model and importing libraries count in neither. It writes
``benchmarks/results/preset_cost.jsonl``.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from benchmarks.store import RESULTS, write_rows
from benchmarks.weighting_cost import Stopwatch
from gacq_deploy.calibration.stage import calibrate
from gacq_deploy.models.trajectories.drawn import COLLECT, PROBE_STATES
from gacq_deploy.recipe.load import load_recipe
from tests.support.models.pipelines import make_stable_diffusion

OUT = RESULTS / "preset_cost.jsonl"
PRESET, SEEDS = "nearest", (0, 1, 2)
LOADING = "load and trace"


def cost_of(recipe: str, source: str, seed: int) -> dict[str, object]:
    """Calibrate once; return CPU seconds by stage and the ratio to the trajectories' own."""
    chosen = load_recipe(
        recipe,
        preset=PRESET,
        model={"source": source},
        samples={"seed": seed},
        calibration={"threads": 1},
    )
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        calibrate(chosen, Path(folder) / "run", report=watch)
    watch.close()
    stages = {name: seconds for name, seconds in watch.seconds.items() if name != LOADING}
    walked = sum(stages.get(name, 0.0) for name in (COLLECT, PROBE_STATES))
    return {
        "cpu_seconds": {name: round(seconds, 2) for name, seconds in stages.items()},
        "times_the_trajectories": round(sum(stages.values()) / walked, 2),
    }


def main() -> None:
    """Measure both models, print, write."""
    with tempfile.TemporaryDirectory() as folder:
        models = {
            "demo": ("fashion-w8a8", "builtin:fashion16"),
            "toy Stable Diffusion": ("sd15-w8a8", str(make_stable_diffusion(Path(folder) / "sd"))),
        }
        rows = {
            f"{name}, seed {seed}": cost_of(recipe, source, seed)
            for name, (recipe, source) in models.items()
            for seed in SEEDS
        }
    write_rows(OUT, rows, {"command": "python -m benchmarks.preset_cost", "preset": PRESET})
    print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
