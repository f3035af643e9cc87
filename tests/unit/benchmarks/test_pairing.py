import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("scipy")

from benchmarks.quality.pairing import compare_pairs, sign_flip_p, spread


def test_one_sign_everywhere_gives_the_smallest_p() -> None:
    test = compare_pairs([0, 0, 0, 0, 0], [1.0, 2.0, 0.5, 0.1, 3.0])
    assert test.p_value == test.smallest_p == 2 / 32


def test_the_interval_is_students() -> None:
    test = compare_pairs([1.0, 2.0, 3.0], [2.0, 4.0, 6.0])
    # differences 1, 2, 3: mean 2, sd 1, t(0.975, 2) = 4.3027
    half = 4.302652729911275 / math.sqrt(3)
    assert (test.low, test.high) == pytest.approx((2 - half, 2 + half))


def test_one_pair_says_nothing() -> None:
    test = compare_pairs([0.0], [5.0])
    assert (test.p_value, test.low, test.high) == (1.0, -math.inf, math.inf)


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_sign_flips_are_counted_exactly(differences: list[int]) -> None:
    flipped = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    expected = np.mean([f >= abs(sum(differences)) for f in flipped])
    assert sign_flip_p([d / 10 for d in differences]) == pytest.approx(expected)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=6))
@settings(max_examples=40, deadline=None)
def test_swapping_the_sides_turns_the_sign_only(values: list[float]) -> None:
    zeros = [0.0] * len(values)
    one, other = compare_pairs(zeros, values), compare_pairs(values, zeros)
    assert one.p_value == other.p_value
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))


def test_what_is_not_paired_is_refused() -> None:
    with pytest.raises(ValueError, match="not 1 to 20 pairs"):
        compare_pairs([1.0], [1.0, 2.0])


def test_spread_of_one_value_has_no_deviation() -> None:
    assert str(spread([1.5])) == "1.50"
    assert str(spread([1.0, 3.0])) == "2.00 ± 1.41"
