"""Does Polygraphy tell each library what the options say, in names that the library has?

``tests/data/trt_api`` holds the names, so that this needs none of the libraries.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.programs.commands import child_environment

ROOT = Path(__file__).parents[2]
RECORDED = sorted((ROOT / "tests/data/trt_api").glob("*"), key=lambda p: p.stem)
TENSORRT = [p for p in RECORDED if "rtx" not in p.stem]
(RTX,) = [p for p in RECORDED if "rtx" in p.stem]


def _configure(api: Path, **options: Any) -> list[list[str]]:
    document = {"backend": "tensorrt-rtx" if api == RTX else "tensorrt", **options}
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.trt.recorded_trt", str(api), json.dumps(document)],
        cwd=ROOT, env=child_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    calls: list[list[str]] = json.loads(done.stdout)  # nothing but them stands there
    return calls


ALWAYS = [
    ["IAttention.decomposable", "True"],
    ["IOptimizationProfile.set_shape", "x", "(1, 3)", "(4, 3)", "(8, 3)"],
    ["IBuilderConfig.add_optimization_profile", "IOptimizationProfile"],
    ["IBuilderConfig.profiling_verbosity", "ProfilingVerbosity.DETAILED"],
    ["IBuilderConfig.create_timing_cache", "b''"],
    ["IBuilderConfig.set_timing_cache", "True", "False"],
    ["IBuilderConfig.progress_monitor", "the monitor"],
]
KEPT = ["IBuilderConfig.set_flag", "BuilderFlag.TF32"]
"""TensorRT's own default, which Polygraphy clears unless told."""


@pytest.mark.parametrize("api", RECORDED, ids=lambda p: p.stem)
def test_without_options_the_librarys_defaults_stay(api: Path) -> None:
    assert _configure(api) == ALWAYS + [KEPT] * (api != RTX)


@pytest.mark.parametrize("api", RECORDED, ids=lambda p: p.stem)
def test_every_option_reaches_the_library(api: Path) -> None:
    calls = _configure(
        api, workspace_mb=64, opt_level=3, refit=True, strip=True, hw_compat=True, version_compat=True
    )
    added = [call for call in calls if call not in ALWAYS and call != KEPT]
    assert added == [
        ["IBuilderConfig.set_flag", "BuilderFlag.REFIT"],
        ["IBuilderConfig.set_flag", "BuilderFlag.STRIP_PLAN"],
        ["IBuilderConfig.set_memory_pool_limit", "MemoryPoolType.WORKSPACE", str(64 << 20)],
        ["IBuilderConfig.builder_optimization_level", "3"],
        ["IBuilderConfig.hardware_compatibility_level", "HardwareCompatibilityLevel.AMPERE_PLUS"],
        ["IBuilderConfig.set_flag", "BuilderFlag.VERSION_COMPATIBLE"],
    ]


def test_targets_of_tensorrt_rtx() -> None:
    calls = _configure(RTX, compute_capabilities=["8.6", "12.0"])
    assert [call for call in calls if call not in ALWAYS] == [
        ["IBuilderConfig.num_compute_capabilities", "2"],
        ["IBuilderConfig.set_compute_capability", "ComputeCapability.SM86", "0"],
        ["IBuilderConfig.set_compute_capability", "ComputeCapability.SM120", "1"],
    ]


@pytest.mark.parametrize("api", TENSORRT, ids=lambda p: p.stem)
def test_timings_that_were_kept_are_taken_up(api: Path, tmp_path: Path) -> None:
    cache = tmp_path / "timing.cache"
    assert ["IBuilderConfig.create_timing_cache", "b''"] in _configure(api, timing_cache=str(cache))
    cache.write_bytes(b"kept")
    assert ["IBuilderConfig.create_timing_cache", "b'kept'"] in _configure(api, timing_cache=str(cache))
    assert [p.name for p in tmp_path.iterdir()] == ["timing.cache"]
