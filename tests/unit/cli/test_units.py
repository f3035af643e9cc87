"""Times and sizes as a user reads them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gacq_deploy_cli.units import about, clock, duration, size


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (42.4, "42 s"),
        (185, "3 min 5 s"),
        (7800, "2 h 10 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3, "a few seconds"), (44, "about 40 s"), (100, "about 2 min"), (3599, "about 1 h 0 min"),
     (7800, "about 2 h 10 min")],
)  # fmt: skip
def test_estimates(seconds: float, text: str) -> None:
    assert about(seconds) == text


@pytest.mark.parametrize(("seconds", "text"), [(5.9, "0:05"), (760, "12:40"), (7390, "2:03:10")])
def test_clocks(seconds: float, text: str) -> None:
    assert clock(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1500, "1.5 kB"),
        (999_960, "1.0 MB"),
        (2_618_796, "2.6 MB"),
        (999_990_000, "1.00 GB"),
        (3.2e9, "3.20 GB"),
    ],
)
def test_sizes(count: float, text: str) -> None:
    assert size(count) == text


@given(st.floats(0, 1e15))
def test_no_unit_is_used_beyond_its_thousand(count: float) -> None:
    number, unit = size(count).split()
    assert unit == "GB" or float(number) < 1000
