"""What do learned weights cost? Calibration of the demo model with and without them, and where the time goes.

``python benchmarks/weighting_cost.py`` (a quarter of an hour on one core) calibrates twice per mode, in alternating
order, each time in a fresh directory and process, at a preset, and prints CPU seconds by stage and the ratio to
``uniform``. Writes ``benchmarks/results/weighting_cost.json``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from gacq_deploy.storage import write_json

RESULTS = Path(__file__).parent / "results" / "weighting_cost.json"
MODES = ("uniform", "gac")


class Stopwatch:
    """Adds up CPU seconds by the stages that a calibration announces."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._name, self._since = "load and trace", time.process_time()

    def stage(self, name: str, total: int) -> None:  # noqa: ARG002 (a Reporter's signature)
        """End the running stage."""
        self.close()
        self._name = name

    def advance(self, n: int = 1, **values: float) -> None:
        """Ignore."""

    def note(self, text: str) -> None:
        """Ignore."""

    def close(self) -> None:
        """Book the running stage."""
        now = time.process_time()
        self.seconds[self._name] = self.seconds.get(self._name, 0.0) + now - self._since
        self._since = now


def calibrate_once(recipe: str, preset: str, overrides: list[str]) -> dict[str, float]:
    """Calibrate in this process and return CPU seconds by stage."""
    from gacq_deploy.calibration.calibrate import calibrate
    from gacq_deploy.recipe import PRESETS, load_recipe
    from gacq_deploy.run_directory import RunDirectory

    resolved = load_recipe(recipe, [*PRESETS[preset], "calibration.threads=1", *overrides])
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        calibrate(resolved, RunDirectory(Path(folder)), report=watch)
    watch.close()
    return watch.seconds


def main() -> None:
    """Run every mode in turn, or one calibration in the child."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="fashion-w4a8")
    parser.add_argument("--preset", default="standard")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.child:
        print(
            json.dumps(calibrate_once(args.recipe, args.preset, [f"calibration.weighting.mode={args.child}"]))
        )
        return
    runs: dict[str, list[dict[str, float]]] = {mode: [] for mode in MODES}
    for number in range(args.rounds):
        for mode in MODES if number % 2 == 0 else reversed(MODES):
            command = [
                sys.executable,
                __file__,
                "--child",
                mode,
                "--recipe",
                args.recipe,
                "--preset",
                args.preset,
            ]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            runs[mode].append(json.loads(done.stdout))
            print(mode, {k: round(v, 1) for k, v in runs[mode][-1].items()}, flush=True)
    result = summarise(runs, args)
    write_json(args.out, result)
    print(json.dumps({k: v for k, v in result.items() if k != "runs"}, indent=2))


def summarise(runs: dict[str, list[dict[str, float]]], args: argparse.Namespace) -> dict[str, Any]:
    """Return totals, the ratio of each round, and the mean seconds by stage."""
    totals = {mode: [sum(r.values()) for r in found] for mode, found in runs.items()}
    ratios = [g / u for g, u in zip(totals["gac"], totals["uniform"], strict=True)]
    stages = {
        mode: {k: round(float(np.mean([r[k] for r in found])), 1) for k in found[0]}
        for mode, found in runs.items()
    }
    return {
        "command": f"python benchmarks/weighting_cost.py --recipe {args.recipe} --preset {args.preset}",
        "ratio_by_round": [round(x, 3) for x in ratios],
        "cpu_seconds": {mode: [round(x, 1) for x in found] for mode, found in totals.items()},
        "mean_cpu_seconds_by_stage": stages,
        "runs": runs,
    }


if __name__ == "__main__":
    main()
