"""Group K: numbers that learning cannot do anything with."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.gradient_matching import make_conflict
from gacq_deploy.calibration.weighting.meta_learning import learn_weights
from gacq_deploy.recipe.calibration import WeightingSection
from tests.support.programs.commands import invoke

RATES = ("weighting.lr", "weighting.look_ahead_rms", "polish.lr", "reconstruction.lr_rounding")


def test_k_a_rate_of_0_is_refused() -> None:
    for key in RATES:
        done = invoke(["recipes", "validate", "unet-w8a8", "--set", f"calibration.{key}=0", "--json"])
        assert done.exit_code == 2, (key, done.output)
        assert key in json.loads(done.stdout)["error"]["message"]
        assert "greater than 0" in done.output


@pytest.mark.parametrize("mode", ["mse", "gac", "gac_faithful"])
def test_k_a_group_of_one_sample(mode: str) -> None:
    problem = make_conflict(0).problem
    one = replace(
        problem, validation_groups=[*problem.validation_groups[:2], problem.validation_groups[2][:1]]
    )
    section = WeightingSection.model_validate(
        {"mode": mode, "validation_batch": 32, "look_ahead": "plain"}, strict=True
    )
    learned = learn_weights(one, section, 8, 0, None)
    assert not learned.fallback
    assert np.isfinite(learned.weights).all()
    assert learned.weights.mean() == pytest.approx(1)
