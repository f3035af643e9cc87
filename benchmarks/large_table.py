"""How does docs/large-models.md show what large models took? ``python -m benchmarks.large_table`` prints its tables."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from benchmarks.large_calibration import OUT as CALIBRATIONS
from benchmarks.large_export import DRY_RUN, OUT, SELF_CHECK
from benchmarks.store import load_rows
from benchmarks.weightless_graphs import OUT as WEIGHTLESS

MODELS = {
    "middle": "a UNet of 314 M",
    "sd15": "SD 1.5, 860 M",
    "sdxl": "SDXL, 2567 M",
    "sd3": "SD3-medium, 2028 M",
    "flux": "FLUX.1, 11901 M",
}
"""Key -> name and parameters."""
STAGES = {
    "export": "`export --onnx`",
    "verify": "`verify`",
    "lint": "`lint`",
    "check": "`check`",
    "build": "`build-trt --backend tensorrt-rtx`",
}
_HEAD = ("model", "stage", "own memory", "with mapped files", "CPU seconds", "disk of the run")
_FORESEEN_HEAD = ("model", "what", "said before", "found", "said / found")
_WEIGHTLESS_HEAD = ("model", "nodes", "quantized layers", "own memory", "CPU seconds")
_HALF = "-half"
Steps = Mapping[str, Any]


class Foreseen(NamedTuple):
    """What was said of one quantity, and what was found: megabytes, or seconds where ``is_time``."""

    what: str
    said: float
    found: float | None = None
    is_time: bool = False

    @property
    def factor(self) -> float | None:
        """How many times as much was said as was found; None: it was not measured."""
        return None if self.found is None else self.said / self.found

    def cells(self) -> tuple[str, str, str, str]:
        """Return the cells of its row behind the model's."""
        written = _duration if self.is_time else _gb
        if self.found is None or self.factor is None:
            return self.what, f"{written(self.said)}, estimated", "not measured", ""
        return self.what, written(self.said), written(self.found), f"{self.factor:.2f}"


def took_lines() -> Iterator[str]:
    """Yield the table of what every stage took."""
    yield from _head(_HEAD)
    for key, row in load_rows(OUT).items():
        for step, stage in STAGES.items():
            if step in row["steps"]:
                took = row["steps"][step]
                failed = f", failed with {took['code']}" if took["code"] else ""
                yield _row(_model(key), f"{stage}{failed}", *_took(took))


def foreseen_lines() -> Iterator[str]:
    """Yield the table of what was said before, beside what was found where that was measured."""
    yield from _head(_FORESEEN_HEAD)
    for model, foreseen in foreseen_rows():
        yield _row(model, *foreseen.cells())


def weightless_lines() -> Iterator[str]:
    """Yield the table of what a graph takes before any weight is read."""
    yield from _head(_WEIGHTLESS_HEAD)
    for key, row in load_rows(WEIGHTLESS).items():
        spent = f"{sum(row['cpu_s'].values()):.0f}"
        yield _row(MODELS[key], str(row["nodes"]), str(row["planned_layers"]), _gb(row["anon_mb"]), spent)


def foreseen_rows() -> Iterator[tuple[str, Foreseen]]:
    """Yield a model's name and what was said and found of it: calibrations that were run first."""
    for key, row in load_rows(CALIBRATIONS).items():
        pixels = 8 * row["latent"]
        for foreseen in _of_calibration(row["steps"]):
            yield f"{_model(key)}, {pixels} x {pixels} pixels", foreseen
    for key, row in load_rows(OUT).items():
        for foreseen in _foreseen(row["steps"]):
            yield _model(key), foreseen


def _of_calibration(steps: Steps) -> Iterator[Foreseen]:
    said, took = steps[DRY_RUN]["answer"], steps.get("calibrate", {})
    yield Foreseen("memory of the calibration, mapped files included", said["memory_mb"], took.get("peak_mb"))
    yield Foreseen("disk of the calibration", said["disk_mb"], took.get("disk_mb"))
    yield Foreseen("CPU time of the calibration, one thread", said["seconds"], took.get("cpu_s"), True)


def _foreseen(steps: Steps) -> Iterator[Foreseen]:
    if DRY_RUN in steps:
        yield Foreseen(
            "memory of the export",
            steps[DRY_RUN]["answer"]["export_mb"],
            steps["export"]["anon_mb"] if "export" in steps else None,
        )
        yield from _of_calibration({DRY_RUN: steps[DRY_RUN]})
    if "build-plan" in steps:
        said, took = steps["build-plan"]["answer"], steps.get("build")
        peak = None if took is None else took["answer"]["builder_peak_mb"]
        yield Foreseen("memory of the builder", said["memory_mb"], peak)
        spent = None if took is None else took["stages"]["compile"]["cpu_s"]
        yield Foreseen("CPU time of the builder", said["seconds"], spent, True)


def _took(step: Steps) -> tuple[str, str, str, str]:
    checking = sum(s["cpu_s"] for name, s in step["stages"].items() if name.startswith(SELF_CHECK))
    spent = f"{step['cpu_s']:.0f}" + (f", {checking:.0f} of them the self-check" if checking else "")
    return _gb(step["anon_mb"]), _gb(step["peak_mb"]), spent, _gb(step["disk_mb"])


def _model(key: str) -> str:
    stored = "float16" if key.endswith(_HALF) else "float32"
    return f"{MODELS[key.removesuffix(_HALF)]}, {stored}"


def _gb(megabytes: float) -> str:
    return f"{megabytes / 1000:.2f} GB"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def _head(cells: tuple[str, ...]) -> Iterator[str]:
    yield _row(*cells)
    yield "|" + "---|" * len(cells)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.stdout.write("\n".join([*took_lines(), "", *foreseen_lines(), "", *weightless_lines()]) + "\n")
