"""Sample weights are checked and normalised where they come in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gacq_deploy.calibration.weighting.sample_weights import (
    FixedWeights,
    UniformWeights,
    checked_weights,
    effective_samples,
)
from gacq_deploy.errors import CalibrationError
from gacq_deploy.samples.calibration_set import CalibrationSet


def samples(n: int) -> CalibrationSet:
    zeros = np.zeros(n, np.int64)
    image = np.zeros((n, 1, 2, 2), np.float32)
    return CalibrationSet(image, zeros, image, {}, zeros, zeros, zeros.astype(np.uint8))


@given(raw=hnp.arrays(np.float64, st.integers(1, 30), elements=st.floats(0.01, 100)))
def test_they_have_mean_one_and_keep_their_ratios(raw: np.ndarray) -> None:
    w = checked_weights(FixedWeights({"b": raw}, "hand"), "b", samples(len(raw)))
    assert w.mean() == pytest.approx(1)
    np.testing.assert_allclose(w / w[0], raw / raw[0])
    assert effective_samples(w) * (1 + 1e-9) >= 1
    assert effective_samples(w) <= len(raw) * (1 + 1e-9)


def test_uniform_weights_are_exactly_one() -> None:
    for source in (UniformWeights(), FixedWeights({"other": np.zeros(3)}, "hand")):
        np.testing.assert_array_equal(checked_weights(source, "b", samples(7)), np.ones(7))


@pytest.mark.parametrize("raw", [[1.0], [1, 1, -1], [0, 0, 0], [1, np.nan, 1], [1, np.inf, 1]])
def test_weights_that_mean_nothing_are_refused(raw: list[float]) -> None:
    with pytest.raises(CalibrationError, match="Block 'b': sample weights"):
        checked_weights(FixedWeights({"b": np.array(raw)}, "hand"), "b", samples(3))
