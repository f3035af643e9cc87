"""Bounded weights stay in their range, at mean 1, with enough samples that count."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gacq_deploy.calibration.weighting.bounds import bounded_weights, project_weights
from gacq_deploy.calibration.weighting.sample_weights import effective_samples

logits_lists = st.lists(st.floats(-2000, 2000), min_size=1, max_size=40)
ranges = st.tuples(st.floats(1e-3, 1), st.floats(1, 50))


@given(st.lists(st.floats(1e-12, 1e12), min_size=1, max_size=40), ranges)
def test_projected_weights_are_in_range_with_mean_one(
    values: list[float], bounds: tuple[float, float]
) -> None:
    weights = np.array(values)
    projected = project_weights(weights, bounds)
    assert projected.mean() == pytest.approx(1, rel=1e-9)
    assert bounds[0] <= projected.min() <= projected.max() <= bounds[1]
    order = np.argsort(weights)
    assert bool((np.diff(projected[order]) >= 0).all())


def test_weights_inside_the_range_keep_their_ratios() -> None:
    assert project_weights(np.array([1.0, 2.0, 3.0]), (0.1, 10)) == pytest.approx(np.array([0.5, 1.0, 1.5]))
    capped = project_weights(np.array([1.0, 2.0, 1000.0, 1.0]), (0.1, 2.0))
    assert capped == pytest.approx(np.array([0.5, 1.0, 2.0, 0.5]))


@given(logits_lists, ranges, st.floats(0.01, 1))
@settings(deadline=None, max_examples=40)
def test_bounded_weights_are_effective_whatever_the_logits(
    values: list[float], bounds: tuple[float, float], least: float
) -> None:
    logits = np.array(values)
    weights, temperature = bounded_weights(logits, 1.0, bounds, least)
    assert bool(np.isfinite(weights).all())
    assert weights.mean() == pytest.approx(1, rel=1e-9)
    assert bounds[0] <= weights.min() <= weights.max() <= bounds[1]
    assert effective_samples(weights) >= least * len(logits) * (1 - 1e-9)
    assert temperature >= 1.0


def test_the_temperature_is_raised_no_further_than_needed() -> None:
    logits = np.array([0.0] * 90 + [6.0] * 10)
    weights, temperature = bounded_weights(logits, 1.0, (0.01, 100.0), 0.5)
    assert temperature > 1
    assert effective_samples(weights) == pytest.approx(50, rel=1e-6)
    kept, same = bounded_weights(logits / 10, 1.0, (0.01, 100.0), 0.5)
    assert same == 1.0
    assert kept == pytest.approx(np.exp(logits / 10) / np.exp(logits / 10).mean())
