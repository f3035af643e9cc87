"""Mini-batches visit every row equally often and every group in its share."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gacq_deploy.calibration.weighting.minibatches import Deck, stratify


def make_generator(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, 0]))


@given(st.integers(1, 30), st.integers(1, 12), st.integers(1, 20))
def test_draws_are_distinct_and_even(size: int, count: int, rounds: int) -> None:
    rows, generator = np.arange(100, 100 + size), make_generator()
    deck = Deck(rows)
    seen = np.zeros(size, dtype=np.int64)
    for _ in range(rounds):
        drawn = deck.draw(count, generator)
        assert len(np.unique(drawn)) == len(drawn) == min(count, size)
        seen[drawn - 100] += 1
    assert np.ptp(seen) <= 1


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.data())
def test_quotas_fill_the_batch_and_leave_no_group_out(sizes: list[int], data: st.DataObject) -> None:
    if sum(sizes) < 2:
        return
    batch = data.draw(st.integers(1, sum(sizes) - 1))
    quotas = stratify(np.array(sizes), batch, make_generator(batch))
    assert quotas.sum() == batch
    assert bool((quotas <= sizes).all())
    assert bool((quotas >= 0).all())
    assert batch < len(sizes) or bool((quotas >= 1).all())


def test_more_groups_than_the_batch_holds_take_turns() -> None:
    generator = make_generator()
    sizes = np.full(50, 10)
    mean = np.mean([stratify(sizes, 32, generator) for _ in range(2000)], axis=0)
    assert mean == pytest.approx(0.64, abs=0.06)
