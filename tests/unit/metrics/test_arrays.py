from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gacq_deploy.metrics.arrays import (
    CEILING_DB,
    by_bucket,
    cosine,
    equal_share,
    relative_error,
    sqnr_db,
)

ONES = np.ones((2, 3), np.float32)


def test_sqnr_is_ten_times_the_log_of_the_power_ratio() -> None:
    assert sqnr_db(ONES, ONES * np.float32(0.9)) == pytest.approx(20, abs=1e-4)
    assert sqnr_db(ONES, ONES) == CEILING_DB
    assert math.isnan(sqnr_db(ONES, ONES * np.float32(np.nan)))
    assert math.isnan(sqnr_db(ONES, ONES * np.float32(np.inf)))


@given(st.floats(0.125, 8), st.integers(0, 100))
def test_sqnr_and_cosine_do_not_depend_on_the_unit(factor: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, 16))
    assert sqnr_db(a * factor, b * factor) == pytest.approx(sqnr_db(a, b))
    assert cosine(a * factor, b) == pytest.approx(cosine(a, b))


def test_cosine_of_zeros_and_of_nan() -> None:
    zeros = np.zeros(4, np.float32)
    assert cosine(zeros, zeros) == 1
    assert cosine(zeros, np.ones(4, np.float32)) == 0
    assert math.isnan(cosine(np.full(4, np.nan), np.full(4, np.nan)))


def test_relative_error_finds_one_bad_row_among_large_ones() -> None:
    reference = np.stack([np.full(4, 100.0), np.full(4, 0.1)])
    candidate = reference.copy()
    candidate[1, 2] += 0.01
    assert relative_error(reference, candidate) == pytest.approx(0.1)
    candidate[1, 2] = np.nan
    assert math.isnan(relative_error(reference, candidate))
    assert relative_error(np.zeros((1, 2)), np.zeros((1, 2))) == 0


def test_equal_share_counts_values_and_never_nan() -> None:
    reference = np.array([1.0, 0.5, 0.0, -1.0])
    candidate = reference + np.array([0, 5e-5, 2e-4, np.nan])
    assert equal_share(reference, candidate, 1e-4) == 0.5


def test_buckets_are_pooled_not_averaged() -> None:
    reference = np.array([[1.0], [3.0], [1.0]])
    candidate = np.array([[1.1], [3.0], [2.0]])
    first, second = by_bucket(sqnr_db, reference, candidate, np.array([0, 0, 1]))
    assert first == pytest.approx(10 * math.log10(10 / 0.01))
    assert second == pytest.approx(0)
