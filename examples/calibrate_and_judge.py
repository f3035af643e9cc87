"""A shipped model becomes a judged INT8 graph, from Python: ``python examples/calibrate_and_judge.py runs/digits``.

The preset `nearest` sets ranges only. Name another one to learn rounding and scales, too.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import gacq_deploy as gd


def calibrate_and_judge(directory: str, preset: str, overrides: Sequence[str] = ()) -> gd.ParityReport:
    """Calibrate, export and judge ``builtin:digits8``; say what failed and what to do about it."""
    recipe = gd.load_recipe("unet-w8a8", overrides, preset=preset, model={"source": "builtin:digits8"})
    run = gd.RunDirectory(directory)
    artifact = gd.calibrate(recipe, run, report=gd.LoggingReporter())
    print(f"{artifact.plan.kind}: {len(artifact.plan.modules)} layers quantized")
    exported = gd.export_onnx(run)
    print(f"written: {', '.join(exported.files)}")
    verdict = gd.check_parity(run)
    for gate in verdict.failed_gates:
        print(f"{gate.candidate}: {gate.metric} is {gate.value}, the bound is {gate.bound}. {gate.advice}")
    print("SHIP IT" if verdict.passed else "DO NOT SHIP")
    return verdict


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", help="the run directory that is made")
    parser.add_argument("--preset", default="nearest", help="how much effort")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a recipe value"
    )
    arguments = parser.parse_args()
    calibrate_and_judge(arguments.directory, arguments.preset, arguments.set)


if __name__ == "__main__":
    main()
