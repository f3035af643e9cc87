"""Calibration on another device, without one: every tensor must lie where the model lies, and no loop may wait."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.support.programs.commands import child_environment

MODELS = ("unet", "dit", "pixart")
STEPS, META = 4, 2
"""Of the polish, and iterations that learn its weights."""
LEARN = "calibration/reconstruction.py _learn"
BACKWARD = "calibration/polish.py _Batches.backward"
MAY_WAIT = {
    # a look at the losses of many iterations, and what is saved of a block
    "reconstruct blocks": {
        LEARN,
        "calibration/reconstruction.py sample_losses",
        "calibration/blocks.py _pack",
    },
    "polish before weighting": {BACKWARD},
    # what is saved on the way and at the end
    "polish": {BACKWARD, "calibration/polish.py _state", "calibration/polish.py _polish.<locals>.<dictcomp>"},
}
"""Stage -> who in the loop and in the layers may make a GPU wait for the host."""
LOOP = ("calibration/reconstruction.py", "calibration/blocks.py", "calibration/polish.py", "quant/")
META_WAITS = 30
"""Of an iteration that learns weights: norms and products of the groups' gradients."""


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Any:
    command = [
        sys.executable,
        "-m",
        "tests.support.programs.on_fake_gpu",
        str(tmp_path_factory.mktemp("gpu")),
    ]
    ran = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=600, env=child_environment()
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", MODELS)
def test_all_of_calibration_runs_where_the_model_lies(facts: Any, name: str) -> None:
    # tensors of two devices in one operation would have raised
    assert facts[name]["blocks"] > 1
    assert facts[name]["polish"]
    # 85 % of the card, in steps of 256 MB
    assert facts[name]["recipe"] == {"device": "cuda", "gpu_memory_mb": 6912}
    assert facts[name]["left"] == 0


def test_text_encoders_leave_the_device_when_prompts_are_encoded(facts: Any) -> None:
    peaks, left = facts["pixart"]["peaks"], facts["pixart"]["between"]
    assert peaks["before"] > 2 * left["collect samples"]


def test_ranges_and_nearest_codes_are_the_cpus(facts: Any) -> None:
    found = facts["nearest"]
    assert found["scales"] < 1e-3
    assert found["farthest"] <= 1
    assert found["other_codes"] <= 1e-4 * found["codes"]


@pytest.mark.parametrize("name", MODELS)
def test_no_step_of_a_loop_waits_for_the_host(facts: Any, name: str) -> None:
    waits = facts[name]["waits"]
    for stage, allowed in MAY_WAIT.items():
        inside = {who for who in waits.get(stage, {}) if who.startswith(LOOP)}
        assert inside <= allowed, stage
    # one look for so few iterations
    assert waits["reconstruct blocks"][LEARN] == facts[name]["blocks"]
    assert sum(waits.get(stage, {}).get(BACKWARD, 0) for stage in MAY_WAIT) == STEPS
    assert sum(waits.get("weigh samples for the polish", {}).values()) <= META_WAITS * (META + 1)


def test_a_run_goes_on_on_the_kind_of_device_on_which_it_began(facts: Any) -> None:
    # what is finished is finished anywhere
    assert facts["elsewhere"]["finished"]
    assert "began on cpu, and this one would go on on cuda" in facts["elsewhere"]["refusal"]
    assert "--device cpu" in facts["elsewhere"]["refusal"]
