"""Choosing a profile: whatever fits is used, padding is least, and a refusal names every range."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gacq_deploy.backends.trt.profiles import Profile, Range, choose_profile
from gacq_deploy.errors import EngineError

BATCHED = frozenset({"sample", "timestep"})


def _profile(index: int, rows: tuple[int, int, int], size: tuple[int, int, int] = (8, 8, 8)) -> Profile:
    sample = Range(*((n, 4, s, s) for n, s in zip(rows, size, strict=True)))
    return Profile(index, {"sample": sample, "timestep": Range(*((n,) for n in rows))})


def _shapes(rows: int, size: int = 8) -> dict[str, tuple[int, ...]]:
    return {"sample": (rows, 4, size, size), "timestep": (rows,)}


sizes = st.lists(st.integers(1, 12), min_size=3, max_size=3).map(lambda v: tuple(sorted(v)))


@given(
    st.lists(st.tuples(sizes, sizes), min_size=1, max_size=4),
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(1, 6),
)
def test_finds_a_profile_exactly_when_there_is_one(
    ranges: list[tuple[tuple[int, int, int], tuple[int, int, int]]], rows: int, size: int, pad_to: int
) -> None:
    profiles = tuple(_profile(i, *r) for i, r in enumerate(ranges))
    possible = [
        (i, n)
        for (i, (r, s)), n in product(enumerate(ranges), range(1, 13))
        if n >= rows and r[0] <= n <= r[2] and s[0] <= size <= s[2]
    ]
    try:
        choice = choose_profile(profiles, _shapes(rows, size), BATCHED, pad_to=pad_to, engine="e")
    except EngineError:
        assert not possible
        return
    run = choice.shapes["sample"][0]
    assert (choice.profile, run) in possible
    assert choice.shapes == _shapes(run, size)
    assert choice.rows == rows
    # nothing that fits has fewer rows, but for those below `pad_to` in a profile that takes so many
    assert run == min(
        max(rows, r[0], min(pad_to, r[2]))
        for i, (r, s) in enumerate(ranges)
        if any(i == j for j, _ in possible)
    )


def test_prefers_the_nearest_optimum_among_equals() -> None:
    profiles = (_profile(0, (1, 8, 8)), _profile(1, (1, 4, 8)), _profile(2, (1, 2, 8)))
    chosen = [
        choose_profile(profiles, _shapes(n), BATCHED, pad_to=1, engine="e").profile for n in (1, 2, 4, 8)
    ]
    assert chosen == [2, 2, 1, 0]


def test_takes_the_smallest_static_bucket_that_holds_the_rows() -> None:
    profiles = tuple(_profile(i, (n, n, n)) for i, n in enumerate((8, 2, 4)))
    rows = {n: choose_profile(profiles, _shapes(n), BATCHED, pad_to=2, engine="e") for n in (1, 2, 3, 5)}
    assert {n: c.shapes["timestep"][0] for n, c in rows.items()} == {1: 2, 2: 2, 3: 4, 5: 8}


def test_a_graph_without_a_batch_is_never_padded() -> None:
    profile = Profile(0, {"x": Range((3, 4), (3, 4), (3, 4))})
    choice = choose_profile((profile,), {"x": (3, 4)}, frozenset(), pad_to=2, engine="e")
    assert choice.shapes == {"x": (3, 4)}
    assert choice.rows is None


def test_a_refusal_names_the_feed_and_every_range() -> None:
    profiles = (_profile(0, (1, 2, 4)), _profile(1, (8, 8, 8), (16, 24, 32)))
    with pytest.raises(EngineError) as caught:
        choose_profile(profiles, _shapes(5), BATCHED, pad_to=2, engine="tensorrt-10.16")
    assert str(caught.value).splitlines()[:3] == [
        "tensorrt-10.16: no profile takes sample [5, 4, 8, 8], timestep [5]. The engine has:",
        "  profile 0: sample [1..4 (2), 4, 8, 8], timestep [1..4 (2)]",
        "  profile 1: sample [8, 4, 16..32 (24), 16..32 (24)], timestep [8]",
    ]
