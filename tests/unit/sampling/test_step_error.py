from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gacq_deploy.artifact.probe import Probe
from gacq_deploy.errors import ArtifactError, ModelError
from gacq_deploy.sampling.flow import FlowSampler
from gacq_deploy.sampling.step_error import OutputError, image_errors, output_error
from tests.support.artifacts.probes import curve_probe
from tests.support.artifacts.samplers import ddim, record_of

CONFIG = {"_class_name": "DDIMScheduler", "beta_schedule": "squaredcos_cap_v2", "clip_sample": False}
UNIT = OutputError(np.array([0, 999]), np.ones(2))


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("steps", [1, 5, 20, 50])
def test_an_error_enters_the_next_state_as_the_sampler_lets_it(prediction: str, steps: int) -> None:
    config: dict[str, Any] = {**CONFIG, "prediction_type": prediction}
    sampler = ddim(config, steps)
    state = np.full((1, 1, 2, 2), 0.3, np.float32)
    moved = [
        float(np.abs(sampler.step(state + 1, i, state) - sampler.step(state, i, state)).max())
        for i in range(steps)
    ]
    np.testing.assert_allclose(
        image_errors(UNIT, record_of(config), sampler.timesteps), moved, rtol=2e-3, atol=1e-5
    )


def test_the_worst_output_is_not_the_worst_step() -> None:
    """The cleanest step's output is ten times as wrong, and moves the image less than the noisiest step does."""
    timesteps = ddim(CONFIG, 20).timesteps
    error = OutputError(np.array([0, 950]), np.array([0.1, 0.01]))
    moved = image_errors(error, record_of(CONFIG), timesteps)
    assert moved[0] == moved.max()
    assert moved[-1] == moved.min()


def test_the_error_is_the_probes_root_mean_square_by_timestep() -> None:
    error = output_error(curve_probe({900: 0.5, 100: 0.1}, rows=3))
    np.testing.assert_array_equal(error.timesteps, [100, 900])
    np.testing.assert_allclose(error.rms, [0.1, 0.5], rtol=1e-6)


def test_between_the_probes_timesteps_the_error_is_interpolated() -> None:
    error = OutputError(np.array([100, 300]), np.array([0.01, 1.0]))
    np.testing.assert_allclose(error.at(np.array([999, 300, 200, 100, 0])), [1, 1, 0.1, 0.01, 0.01])


def test_a_model_without_error_has_none() -> None:
    error = output_error(curve_probe({900: 0.0, 100: 0.0}))
    assert not np.any(image_errors(error, record_of(CONFIG), np.array([900, 100])) > 1e-200)


def test_without_both_outputs_nothing_says_which_steps_are_worst() -> None:
    probe = curve_probe({900: 0.5})
    for less in (None, replace(probe, outputs={"float": probe.outputs["float"]}), Probe({}, {}, {})):
        with pytest.raises(ArtifactError, match="which steps are worst") as raised:
            output_error(less)
        assert "first" in raised.value.hint


def test_a_schedule_that_no_sampler_here_can_follow_is_refused() -> None:
    with pytest.raises(ModelError, match="FlowMatchHeun"):
        image_errors(UNIT, record_of({"_class_name": "FlowMatchHeunDiscreteScheduler"}), np.array([900, 100]))


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 5, 28])
def test_an_error_enters_the_next_state_as_a_flow_lets_it(shift: float, steps: int) -> None:
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": shift}
    sampler = FlowSampler.from_config(config, steps)
    state, run = np.full((1, 6, 4), 0.3, np.float32), sampler.begin([0])
    moved = [
        float(np.abs(run.step(state + 1, i, state) - run.step(state, i, state)).max()) for i in range(steps)
    ]
    # timesteps are rounded to whole ones of 1000
    np.testing.assert_allclose(image_errors(UNIT, record_of(config), sampler.timesteps), moved, atol=1.1e-3)
    assert sum(moved) == pytest.approx(1, abs=1e-5)


def test_the_error_of_a_network_that_is_told_sigma_is_by_training_timesteps() -> None:
    probe = curve_probe({900: 0.5, 100: 0.1}, rows=3)
    fed = (probe.inputs["timestep"] * 0.001).astype(np.float32)
    scaled = output_error(replace(probe, inputs={**probe.inputs, "timestep": fed}), 0.001)
    whole = output_error(probe)
    np.testing.assert_array_equal(scaled.timesteps, whole.timesteps)
    np.testing.assert_array_equal(scaled.rms, whole.rms)
