"""What do learned weights cost? One calibration of the demo model, stage by stage, polished with and without them.

``python benchmarks/weighting_cost.py`` (ten minutes on one core) calibrates at a preset with ``gac`` in a fresh
directory, then with ``uniform`` in the same one, where the samples, ranges and blocks are kept, since they are the same
work in both. It prints CPU seconds by stage and the ratio of the two whole calibrations; writes
``benchmarks/results/weighting_cost.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.store import RESULTS, Rows, write_rows
from gacq_deploy.progress import SilentReporter

OUT = RESULTS / "weighting_cost.jsonl"


class Stopwatch(SilentReporter):
    """Adds up CPU seconds by the stages that a calibration announces."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._name, self._since = "load and trace", time.process_time()

    def stage(self, name: str, total: int, costs: Sequence[float] = ()) -> None:  # noqa: ARG002 (a Reporter's signature)
        """End the running stage."""
        self.close()
        self._name = name

    def close(self) -> None:
        """Book the running stage."""
        now = time.process_time()
        self.seconds[self._name] = self.seconds.get(self._name, 0.0) + now - self._since
        self._since = now


def calibrate_once(recipe: str, preset: str, mode: str, directory: Path) -> dict[str, float]:
    """Calibrate and return CPU seconds by stage."""
    from gacq_deploy.calibration.stage import calibrate
    from gacq_deploy.recipe.load import load_recipe
    from gacq_deploy.run_directory import RunDirectory

    chosen = {"threads": 1, "weighting": {"mode": mode}}
    watch = Stopwatch()
    calibrate(load_recipe(recipe, preset=preset, calibration=chosen), RunDirectory(directory), report=watch)
    watch.close()
    return watch.seconds


def main() -> None:
    """Calibrate both ways, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="fashion-w4a8")
    parser.add_argument("--preset", default="standard")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        weighted = calibrate_once(args.recipe, args.preset, "gac", Path(folder) / "run")
        plain = calibrate_once(args.recipe, args.preset, "uniform", Path(folder) / "run")
    rows, ratio = summarise(weighted, plain)
    command = f"python benchmarks/weighting_cost.py --recipe {args.recipe} --preset {args.preset}"
    write_rows(args.out, rows, {"command": command, "ratio": ratio})
    print(json.dumps({"ratio": ratio, **rows}, indent=2))


def summarise(weighted: dict[str, float], plain: dict[str, float]) -> tuple[Rows, float]:
    """Return total and seconds by stage of both, and the ratio of the totals."""
    shared = {name: value for name, value in weighted.items() if not _of_polish(name)}
    uniform = {**shared, **{name: value for name, value in plain.items() if _of_polish(name)}}
    rows = {
        mode: {
            "cpu_seconds": round(sum(stages.values()), 1),
            "by_stage": {name: round(value, 1) for name, value in stages.items()},
        }
        for mode, stages in (("gac", weighted), ("uniform", uniform))
    }
    return rows, round(sum(weighted.values()) / sum(uniform.values()), 3)


def _of_polish(stage: str) -> bool:
    return "polish" in stage


if __name__ == "__main__":
    main()
