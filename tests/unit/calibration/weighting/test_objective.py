"""What a timestep's error costs: one coefficient a timestep, measured where the images decide."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gacq_deploy.calibration.weighting.objective import coefficients, step_means, trajectory_gains
from gacq_deploy.models.base import Denoiser
from gacq_deploy.quant.layers import quantized_layers
from gacq_deploy.samples.conditioning import Conditions
from tests.support.artifacts.quantized import answer, quantized_tiny
from tests.support.models.tiny import tiny_denoiser

ERRORS = {900: 1.0, 500: 0.1, 100: 0.02}


def test_step_means_are_means_over_a_timesteps_rows() -> None:
    timesteps = np.array([9, 5, 9, 5, 1])
    assert step_means(np.array([1.0, 2, 3, 4, 5]), timesteps) == {1: 5.0, 5: 3.0, 9: 2.0}


def test_eps_takes_errors_as_they_are() -> None:
    assert coefficients("eps", ERRORS) == dict.fromkeys(ERRORS, 1.0)


def test_sqnr_makes_every_timestep_cost_the_same() -> None:
    found = coefficients("sqnr", ERRORS)
    assert list(found) == list(ERRORS)
    costs = [found[t] * ERRORS[t] for t in ERRORS]
    assert costs == pytest.approx([costs[0]] * 3)
    assert np.mean(list(found.values())) == pytest.approx(1)


def test_images_follow_the_gains_and_are_sqnr_without_them() -> None:
    gains = {900: 0.5, 500: 1.0, 100: 4.0}
    found = coefficients("images", ERRORS, gains)
    assert [found[t] / found[900] for t in gains] == pytest.approx([1, 2, 8])
    assert coefficients("images", ERRORS) == coefficients("sqnr", ERRORS)
    # a timestep whose gain was not measured counts as little as the bounds allow
    assert coefficients("images", ERRORS, {900: 1.0, 500: 1.0})[100] == pytest.approx(0.01)
    assert coefficients("sqnr", ERRORS, gains) == coefficients("sqnr", ERRORS)


@pytest.mark.parametrize("objective", ["eps", "sqnr", "images"])
def test_without_any_error_all_count_the_same(objective: str) -> None:
    zeros = dict.fromkeys(ERRORS, 0.0)
    assert coefficients(objective, zeros, zeros) == dict.fromkeys(ERRORS, 1.0)  # type: ignore[arg-type]


def test_a_step_without_error_does_not_outweigh_the_others() -> None:
    found = coefficients("sqnr", ERRORS | {1: 0.0})
    assert found[1] == pytest.approx(0.01)
    assert min(found[t] for t in ERRORS) > found[1]


@pytest.mark.parametrize("objective", ["eps", "sqnr", "images"])
def test_one_timestep_has_coefficient_one(objective: str) -> None:
    found = coefficients(objective, {7: 0.3}, {7: 2.0})  # type: ignore[arg-type]
    assert found == {7: pytest.approx(1)}


@given(errors=st.dictionaries(st.integers(0, 999), st.floats(0, 1e6), min_size=1, max_size=20))
def test_coefficients_stay_in_bounds_at_mean_one_and_fall_with_the_error(errors: dict[int, float]) -> None:
    found = coefficients("sqnr", errors)
    values = np.array(list(found.values()))
    assert values.mean() == pytest.approx(1)
    assert values.min() >= 0.01
    assert values.max() <= 100
    positive = sorted((e, found[t]) for t, e in errors.items() if e > 1e-9 * max(errors.values()))
    assert all(b <= a * (1 + 1e-9) for (_, a), (_, b) in pairwise(positive))


def test_gains_are_positive_deterministic_and_one_a_step() -> None:
    denoiser, layers = quantized_tiny()
    before = answer(denoiser)
    gains = trajectory_gains(denoiser, 4, seed=3)
    assert list(gains) == sorted(gains, reverse=True)
    assert len(gains) == 4
    assert all(np.isfinite(g) and g > 0 for g in gains.values())
    assert trajectory_gains(denoiser, 4, seed=3) == gains
    assert trajectory_gains(denoiser, 4, seed=4) != gains
    assert torch.equal(answer(denoiser), before)
    assert quantized_layers(denoiser.module) == layers


def test_gains_are_measured_while_scales_are_being_learned() -> None:
    denoiser, layers = quantized_tiny()
    frozen = trajectory_gains(denoiser, 2, seed=3)
    for layer in layers.values():
        assert layer.input_quantizer is not None
        layer.input_quantizer.log_gain.requires_grad_(True)
    assert trajectory_gains(denoiser, 2, seed=3) == frozen


def test_a_model_that_answers_as_the_float_one_has_no_gains() -> None:
    assert set(trajectory_gains(tiny_denoiser(), 3, seed=0).values()) == {0.0}


def _with_scheduler(denoiser: Denoiser, **scheduler: Any) -> Denoiser:
    record = denoiser.record.model_copy(update={"scheduler": scheduler})
    return dataclasses.replace(denoiser, record=record)


def test_gains_of_a_flow_are_by_its_own_steps() -> None:
    denoiser, _ = quantized_tiny()
    flow = _with_scheduler(denoiser, _class_name="FlowMatchEulerDiscreteScheduler", pipeline_sigmas=True)
    gains = trajectory_gains(flow, 4, seed=3)
    assert list(gains) == [1000, 750, 500, 250]
    # the last step's error is the image's, times the difference of sigmas
    assert gains[250] == pytest.approx(0.25**2, rel=1e-4)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_sampler_that_remembers_departs_from_the_float_run() -> None:
    denoiser, _ = quantized_tiny()
    config = {"beta_schedule": "squaredcos_cap_v2", "use_flow_sigmas": True, "flow_shift": 3.0}
    solver = _with_scheduler(denoiser, _class_name="UniPCMultistepScheduler", **config)
    gains = trajectory_gains(solver, 3, seed=3)
    assert len(gains) == 3
    assert all(np.isfinite(g) and g > 0 for g in gains.values())
    assert trajectory_gains(solver, 3, seed=3) == gains


def test_guidance_magnifies_the_last_steps_error() -> None:
    denoiser, _ = quantized_tiny()
    flow = _with_scheduler(denoiser, _class_name="FlowMatchEulerDiscreteScheduler", pipeline_sigmas=True)
    labels = {"class_labels": np.array([0, 1])}
    plain = trajectory_gains(flow, 2, 3, Conditions(labels))[500]
    # both branches alike: the guided prediction is the one of either
    alike = trajectory_gains(flow, 2, 3, Conditions(labels, labels, 7.0))[500]
    assert alike == pytest.approx(plain, rel=1e-4)
    guided = trajectory_gains(flow, 2, 3, Conditions(labels, {"class_labels": np.array([2, 3])}, 7.0))[500]
    assert guided > 10 * plain
