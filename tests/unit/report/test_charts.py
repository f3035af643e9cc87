from __future__ import annotations

import math
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gacq_deploy.report.charts import (
    WIDTH,
    Axes,
    Series,
    SpreadBar,
    dot_chart,
    heat_map,
    line_chart,
    log_ticks,
    spread_chart,
    strip_chart,
    ticks,
)

AXES = Axes("timestep", "SQNR (dB)", falling=True)
X = np.array([900.0, 500.0, 100.0])


def _texts(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter("text")]


def _dots(svg: str) -> list[tuple[float, float]]:
    return [(float(e.attrib["cx"]), float(e.attrib["cy"])) for e in ET.fromstring(svg).iter("circle")]


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_are_round_and_lie_inside(low: float, length: float) -> None:
    found = ticks(low, low + length)
    steps = np.diff(found)
    assert 1 <= len(found) <= 7
    assert np.allclose(steps, steps[0] if len(steps) else 0, rtol=1e-3)
    assert all(low - length * 1e-6 <= value <= low + length * (1 + 1e-6) for value in found)
    if len(steps):
        mantissa = steps[0] / 10.0 ** math.floor(math.log10(steps[0]) + 1e-9)
        assert min(abs(mantissa - m) for m in (1, 2, 5)) < 1e-2


def test_log_ticks_are_one_two_five() -> None:
    assert log_ticks(0.1, 10) == [0.1, 0.2, 0.5, 1, 2, 5, 10]
    assert log_ticks(1e-3, 1e3) == [10.0**n for n in range(-3, 4)]  # more would run into each other


def test_noisy_stands_left_and_more_stands_higher() -> None:
    (x1, y1), (x2, y2), (x3, y3) = _dots(line_chart([Series("a", X, np.array([1.0, 2, 3]))], AXES, "rising"))
    assert x1 < x2 < x3
    assert y1 > y2 > y3


def test_axes_and_lines_carry_their_names() -> None:
    svg = line_chart([Series("nearest", X, X), Series("polish", X, X + 1)], AXES, "what one hears")
    assert {"timestep", "SQNR (dB)", "nearest", "polish"} <= set(_texts(svg))
    assert ET.fromstring(svg).attrib["aria-label"] == "what one hears"


def test_a_value_that_is_not_finite_leaves_a_gap() -> None:
    x = np.arange(5.0)
    svg = line_chart([Series("a", x, np.array([1, 2, np.nan, 4, np.inf]))], Axes("x", "y"), "gap")
    assert len(_dots(svg)) == 3
    assert len(list(ET.fromstring(svg).iter("polyline"))) == 1 + 2  # the key, and both parts


@pytest.mark.parametrize("values", [[math.nan] * 3, [5.0] * 3, [0.0] * 3], ids=["nothing", "equal", "zero"])
def test_flat_and_empty_data_draw(values: list[float]) -> None:
    assert ET.fromstring(line_chart([Series("a", X, np.array(values))], AXES, "flat")).tag == "svg"


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12))
def test_labels_meet_neither_each_other_nor_an_edge(lengths: list[int]) -> None:
    lines = [Series("w" * length, X, X, colour) for colour, length in enumerate(lengths)]
    root = ET.fromstring(line_chart(lines, AXES, "many"))
    width, height = (float(n) for n in root.attrib["viewBox"].split()[2:])
    boxes = []
    for text in root.iter("text"):
        place, wide = (float(text.attrib["x"]), float(text.attrib["y"])), 6.4 * len(text.text or "")
        left = place[0] - {"start": 0.0, "middle": 0.5, "end": 1.0}[text.attrib["text-anchor"]] * wide
        boxes.append((left, left + wide, place[1] - 10, place[1]))
    assert all(low >= 0 and bottom <= height for _, _, low, bottom in boxes)
    assert all(right <= width + 1 for _, right, _, _ in boxes)
    for i, (left, right, top, bottom) in enumerate(boxes):
        for other in boxes[:i]:
            assert right <= other[0] or other[1] <= left or bottom <= other[2] or other[3] <= top


def test_lines_have_the_width_of_the_chart() -> None:
    places = [x for x, _ in _dots(line_chart([Series("a long name of a line", X, X)], AXES, "wide"))]
    assert max(places) - min(places) > 0.75 * WIDTH


def test_a_line_has_the_colour_that_it_is_given() -> None:
    svg = line_chart([Series("b", X, X, 4), Series("a", X, X + 1, 1, mixed=True)], AXES, "colours")
    lines = [e.attrib["class"] for e in ET.fromstring(svg).iter("polyline")]
    assert lines == ["line s4", "line s1 mixed"] * 2  # in the key, then in the chart


def test_text_is_escaped() -> None:
    hostile = '"><script>alert(1)</script>'
    svg = line_chart([Series(hostile, X, X)], Axes(hostile, hostile), hostile)
    assert "<script" not in svg
    assert hostile in _texts(svg)


def test_a_spread_shows_bands_around_the_median() -> None:
    quantiles = np.array([[0.2, 0.3, 0.4], [0.5, 0.6, 0.7], [1, 1, 1], [1.5, 2, 2], [4, 4, 4]])
    svg = spread_chart(SpreadBar(X, quantiles), Axes("t", "weight", log=True, level=1.0), "weights")
    root = ET.fromstring(svg)
    assert [e.attrib["class"] for e in root.iter("polygon")] == ["band wide", "band"]
    assert {"median", "quartiles", "minimum to maximum"} <= set(_texts(svg))
    # in the key each name has a sample that looks as what it names
    assert [e.attrib["class"] for e in root.iter("rect")] == ["band", "band wide"]
    assert [e.attrib["class"] for e in root.iter("polyline")] == ["line s0", "line s0"]


def test_strips_have_scales_of_their_own_and_share_an_axis() -> None:
    small, large = (
        Series("small", X, np.array([1e-3, 2e-3, 3e-3])),
        Series("large", X, np.array([1.0, np.nan, 9])),
    )
    svg = strip_chart([small, large], "iteration", "what was learned")
    dots = _dots(svg)
    assert len(dots) == 5
    assert [x for x, _ in dots[:3:2]] == [x for x, _ in dots[3:]]
    heights = [max(y) - min(y) for y in ([y for _, y in dots[:3]], [y for _, y in dots[3:]])]
    assert heights[0] == pytest.approx(heights[1], abs=0.2)
    assert {"small", "large", "0.001", "0.003", "1", "9", "iteration"} <= set(_texts(svg))


@pytest.mark.parametrize("values", [[math.nan], [0.5]], ids=["nothing", "one"])
def test_a_strip_of_one_value_draws(values: list[float]) -> None:
    assert len(_dots(strip_chart([Series("a", np.array([1.0]), np.array(values))], "x", "one"))) == (
        0 if math.isnan(values[0]) else 1
    )


def test_a_heat_map_writes_every_number_in_a_readable_ink() -> None:
    matrix = np.array([[1.0, -0.8], [0.0, np.nan]])
    root = ET.fromstring(heat_map(matrix, ["990-500", "499-10"], "group", "cosines"))
    cells = [(t.text, t.attrib["fill"]) for t in root.iter("text") if t.attrib["class"] == "cell"]
    assert [text for text, _ in cells[:3]] == ["1.00", "-0.80", "0.00"]
    assert cells[0][1] == "#ffffff"
    assert cells[2][1] == "#000000"


def test_a_large_heat_map_has_colours_alone() -> None:
    root = ET.fromstring(heat_map(np.eye(20), [str(i) for i in range(20)], "group", "cosines"))
    assert len(list(root.iter("rect"))) == 400
    assert not [t for t in root.iter("text") if t.attrib["class"] == "cell"]


def test_dots_are_as_many_as_pairs() -> None:
    assert (
        len(_dots(dot_chart(np.arange(50.0), np.linspace(-1, 1, 50), Axes("bin", "alignment"), "bins"))) == 50
    )
