"""Is the best of a row the best, whatever its order, and never one that chance could have put first?"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gacq_deploy.compare.rows import RowValue, best_of


def _value(number: float, *, spread: float = 0.0, current: bool = True) -> RowValue:
    return RowValue(number, f"{number:g}", current, number - spread, number + spread)


VALUES = st.lists(
    st.none()
    | st.builds(
        _value,
        st.integers(-5, 5).map(float),
        spread=st.integers(0, 2).map(float),
        current=st.booleans(),
    ),
    max_size=6,
)


@given(values=VALUES, more=st.booleans())
def test_the_best_are_current_and_reach_the_leader(values: list[RowValue | None], more: bool) -> None:
    best = best_of(values, more_is_better=more)
    current = {i: value for i, value in enumerate(values) if value is not None and value.is_current}
    assert set(best) < set(current) or not best
    if not best:
        return
    extreme = max if more else min
    leader = extreme(current.values(), key=lambda value: value.number)
    for i, value in current.items():
        clearly_worse = value.high < leader.low if more else value.low > leader.high
        assert (i in best) != clearly_worse


@given(values=VALUES, more=st.booleans())
def test_less_is_more_of_the_negative(values: list[RowValue | None], more: bool) -> None:
    turned = [v and RowValue(-v.number, v.text, v.is_current, low=-v.high, high=-v.low) for v in values]
    assert best_of(turned, more_is_better=not more) == best_of(values, more_is_better=more)


def test_no_best_where_nothing_is_told_apart() -> None:
    a, b = _value(1), _value(2)
    assert best_of([a, b], more_is_better=True) == (1,)
    assert best_of([a, b], more_is_better=False) == (0,)
    assert best_of([a, b], more_is_better=None) == ()
    assert best_of([a, a], more_is_better=True) == ()
    assert best_of([a, None], more_is_better=True) == ()
    assert best_of([a, _value(9, current=False)], more_is_better=True) == ()
    assert best_of([_value(1.5, spread=0.1), _value(1.6, spread=0.1)], more_is_better=True) == ()
    three = [_value(1.5, spread=0.1), _value(1.6, spread=0.1), a]
    assert best_of(three, more_is_better=True) == (0, 1)
