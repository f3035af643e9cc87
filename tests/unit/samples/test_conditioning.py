from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gacq_deploy.errors import UsageError
from gacq_deploy.samples.conditioning import Conditions
from gacq_deploy.spec import Array


def _text(rows: int, seed: int = 0, width: int = 3) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {
        "text": rng.standard_normal((rows, 2, width), np.float32),
        "ids": rng.integers(0, 9, (rows,)),
    }


def test_without_conditions_there_is_nothing_to_feed() -> None:
    none = Conditions({})
    assert (len(none), none.branches, none.feeds()) == (0, 1, {})
    assert len(none.cycle(5)) == len(none.rows(slice(0, 3))) == 0


def test_without_a_negative_the_prediction_is_the_models() -> None:
    conditions = Conditions(_text(3), scale=7.0)
    prediction = np.ones((3, 4), np.float32)
    assert conditions.branches == 1
    assert conditions.guide(prediction) is prediction
    np.testing.assert_array_equal(conditions.feeds()["text"], conditions.positive["text"])


@given(rows=st.integers(1, 4), scale=st.floats(-2, 12, width=32))
def test_guidance_leads_away_from_the_negative(rows: int, scale: float) -> None:
    conditions = Conditions(_text(rows), _text(rows, seed=1), scale)
    fed = conditions.feeds()["text"]
    assert conditions.negative is not None
    np.testing.assert_array_equal(fed[:rows], conditions.negative["text"])
    np.testing.assert_array_equal(fed[rows:], conditions.positive["text"])
    away, towards = fed[:rows], fed[rows:]
    np.testing.assert_array_equal(conditions.guide(fed), away + np.float32(scale) * (towards - away))
    one = Conditions(_text(rows), _text(rows, seed=1), 1.0)
    np.testing.assert_allclose(one.guide(fed), towards, atol=1e-6)


def test_rows_keep_pairs_together() -> None:
    whole = Conditions(_text(3), _text(3, seed=1), 5.0)
    for part in (whole.rows(np.array([2, 0])), whole.rows(slice(1, 3)), whole.cycle(7)):
        assert part.scale == 5.0
        assert part.branches == 2
        for row in range(len(part)):
            matches = (part.positive["text"][row] == whole.positive["text"]).all(axis=(1, 2))
            (source,) = np.flatnonzero(matches)
            assert part.negative is not None
            assert whole.negative is not None
            np.testing.assert_array_equal(part.negative["text"][row], whole.negative["text"][source])
            assert part.positive["ids"][row] == whole.positive["ids"][source]
    assert len(whole.cycle(7)) == 7
    np.testing.assert_array_equal(whole.cycle(7).positive["text"][3:6], whole.positive["text"])


@pytest.mark.parametrize(
    ("positive", "negative", "scale", "message"),
    [
        ({"text": np.zeros((2, 3)), "pooled": np.zeros((3, 3))}, None, 1.0, "unequal rows"),
        ({"text": np.zeros(())}, None, 1.0, "unequal rows"),
        (_text(2), {"text": _text(2)["text"]}, 1.0, "does not match"),
        (_text(2), _text(3), 1.0, "does not match"),
        (_text(2), _text(2, width=4), 1.0, "does not match"),
        (_text(2), {k: v.astype(np.float64) for k, v in _text(2).items()}, 1.0, "float64"),
        ({}, {}, 1.0, "does not match"),
        (_text(2), None, float("nan"), "scale is nan"),
        (_text(2), _text(2), float("inf"), "scale is inf"),
    ],
)
def test_what_does_not_pair_is_refused(
    positive: dict[str, Array], negative: dict[str, Array] | None, scale: float, message: str
) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        Conditions(positive, negative, scale)
    assert raised.value.hint
