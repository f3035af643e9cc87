"""How does docs/large-models.md show what large models took? ``python -m benchmarks.large_table`` prints its tables."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.large_export import DRY_RUN, OUT, SELF_CHECK
from benchmarks.store import load_rows

MODELS = {
    "middle": "a UNet of 314 M",
    "sd15": "SD 1.5, 860 M",
    "sdxl": "SDXL, 2567 M",
    "sd3": "SD3-medium, 2028 M",
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
_HALF = "-half"
Steps = Mapping[str, Any]


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
    for key, row in load_rows(OUT).items():
        for what, said, found in _foreseen(row["steps"]):
            compared = ("not measured", "") if found is None else (_gb(found), f"{said / found:.2f}")
            yield _row(_model(key), what, _gb(said), *compared)


def _foreseen(steps: Steps) -> Iterator[tuple[str, float, float | None]]:
    """Yield what was foreseen, and megabytes said and found."""
    if DRY_RUN in steps:
        said = steps[DRY_RUN]["answer"]
        found = steps["export"]["anon_mb"] if "export" in steps else None
        yield "memory of the export", said["export_mb"], found
        yield "memory of the calibration, mapped files included", said["memory_mb"], None
        yield "disk of the calibration", said["disk_mb"], None
    if "build-plan" in steps:
        said = steps["build-plan"]["answer"]
        found = steps["build"]["answer"]["builder_peak_mb"] if "build" in steps else None
        yield "memory of the builder", said["memory_mb"], found


def _took(step: Steps) -> tuple[str, str, str, str]:
    checking = sum(s["cpu_s"] for name, s in step["stages"].items() if name.startswith(SELF_CHECK))
    spent = f"{step['cpu_s']:.0f}" + (f", {checking:.0f} of them the self-check" if checking else "")
    return _gb(step["anon_mb"]), _gb(step["peak_mb"]), spent, _gb(step["disk_mb"])


def _model(key: str) -> str:
    stored = "float16" if key.endswith(_HALF) else "float32"
    return f"{MODELS[key.removesuffix(_HALF)]}, {stored}"


def _gb(megabytes: float) -> str:
    return f"{megabytes / 1000:.2f} GB"


def _head(cells: tuple[str, ...]) -> Iterator[str]:
    yield _row(*cells)
    yield "|" + "---|" * len(cells)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.stdout.write("\n".join([*took_lines(), "", *foreseen_lines()]) + "\n")
