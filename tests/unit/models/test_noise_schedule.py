"""The noise schedule is recorded as the model's scheduler has it; what no sampler follows is refused at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import DDPMScheduler

from gacq_deploy.artifact.artifact import load_artifact
from gacq_deploy.errors import ModelError
from gacq_deploy.models.noise_schedule import alphas_cumprod, check_process, recorded_alphas
from tests.support.models.tiny import tiny_artifact, tiny_denoiser

FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler"}


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"trained_betas": [0.1, 0.2, 0.3], "num_train_timesteps": 3},
    ],
)
def test_it_is_the_schedulers_own(config: dict[str, Any]) -> None:
    scheduler = DDPMScheduler.from_config(config)
    found = recorded_alphas({**scheduler.config, "_class_name": "DDPMScheduler"})
    np.testing.assert_array_equal(np.array(found, np.float32), scheduler.alphas_cumprod.numpy())


def test_a_process_that_ddim_has_no_part_in_has_none() -> None:
    assert recorded_alphas(FLOW) is None
    assert recorded_alphas({"_class_name": "EDMEulerScheduler"}) is None


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"beta_schedule": "sigmoid"}, "sigmoid"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas has 2 values, num_train_timesteps is 1000"),
        ({"_class_name": "EDMEulerScheduler"}, "EDMEulerScheduler"),
    ],
)
def test_a_schedule_that_is_none_is_refused(config: dict[str, Any], said: str) -> None:
    for refuse in (alphas_cumprod, lambda c: check_process(c, "here")):
        with pytest.raises(ModelError, match=said) as caught:
            refuse(config)
        assert caught.value.hint


def test_an_artifact_keeps_it_among_its_tensors(tmp_path: Path) -> None:
    artifact = tiny_artifact(tiny_denoiser())
    assert artifact.model.alphas_cumprod is not None
    artifact.save(tmp_path / "artifact")
    loaded = load_artifact(tmp_path / "artifact")
    assert loaded.model == artifact.model
    assert "alphas_cumprod" not in (tmp_path / "artifact" / "manifest.json").read_text()
