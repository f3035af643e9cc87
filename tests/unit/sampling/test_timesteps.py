from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gacq_deploy.errors import ModelError
from gacq_deploy.sampling.timesteps import distinct_keys, model_timesteps_from, training_keys

falling = st.lists(st.floats(0, 1000), min_size=1, max_size=60).map(lambda v: np.array(sorted(v)[::-1]))


@given(falling)
def test_keys_are_distinct_and_fall(timesteps: np.ndarray) -> None:
    keys = distinct_keys(timesteps)
    assert keys.dtype == np.int64
    assert (np.diff(keys) < 0).all()
    assert keys[-1] >= 0
    # no key moves further than the crowd around it needs
    assert np.abs(keys - timesteps).max() <= 0.5 + len(keys) - 1


@given(st.sets(st.integers(0, 1000), min_size=1, max_size=60), st.floats(-0.45, 0.45))
def test_keys_that_are_distinct_stay(whole: set[int], off: float) -> None:
    keys = np.array(sorted(whole)[::-1])
    np.testing.assert_array_equal(distinct_keys(np.maximum(keys + off, 0)), keys)


@given(st.lists(st.integers(0, 1000), min_size=1), st.sampled_from([1.0, 0.001]))
def test_what_is_told_leads_back(keys: list[int], scale: float) -> None:
    fed = model_timesteps_from(np.array(keys), "float32", scale)
    assert fed.dtype == np.float32
    np.testing.assert_array_equal(training_keys(fed, scale), keys)


def test_whole_timesteps_are_told_as_they_are() -> None:
    fed = model_timesteps_from(np.array([900.0, 0.0]))
    assert fed.dtype == np.int64
    assert fed.tolist() == [900, 0]
    for values, scale, shown in (([0.5], 1.0, r"0\.500"), ([900.0], 0.001, r"times 0\.001")):
        with pytest.raises(ModelError, match=shown):
            model_timesteps_from(np.array(values), "int64", scale)
