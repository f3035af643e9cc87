from xml.etree import ElementTree as ET

import numpy as np
import pytest

from benchmarks.curves import Curve, Panel, draw_panels
from benchmarks.step_policy import compare, rank_correlation

SVG = "{http://www.w3.org/2000/svg}"


def test_every_panel_shows_every_curve_and_the_legend_names_them_once() -> None:
    curves = (
        Curve("worst <k>", (0, 50, 90), (30, 40, 60), (1, 1, 1)),
        Curve("last", (0, 90), (30, 31), (0, 0)),
    )
    root = ET.fromstring(draw_panels([Panel("a & b", curves), Panel("c", curves)], "share", "dB"))
    lines = [line.attrib["points"].split() for line in root.iter(f"{SVG}polyline")]
    assert sorted(len(points) for points in lines) == [2, 2, 2, 2, 3, 3]
    words = [text.text for text in root.iter(f"{SVG}text")]
    assert (words.count("worst <k>"), words.count("a & b")) == (1, 1)
    height = float(root.attrib["height"])
    assert all(0 <= float(p.split(",")[1]) <= height for points in lines for p in points)


def test_higher_values_stand_higher() -> None:
    root = ET.fromstring(draw_panels([Panel("a", (Curve("c", (0, 50), (30, 40), (0, 0)),))], "x", "y"))
    first, second = next(root.iter(f"{SVG}polyline")).attrib["points"].split()
    assert float(second.split(",")[1]) < float(first.split(",")[1])
    assert float(second.split(",")[0]) > float(first.split(",")[0])


def test_sets_are_averaged_and_their_spread_is_over_the_sets() -> None:
    exact = [np.zeros((2, 1, 16, 16), np.float32)] * 2
    off = [np.full((2, 1, 16, 16), value, np.float32) for value in (0.02, 0.2)]
    found = compare(exact, off)
    assert found["psnr_db"] == pytest.approx((40 + 20) / 2, abs=1e-3)
    assert found["psnr_db_sd"] == pytest.approx(20 / np.sqrt(2), abs=1e-3)
    assert found["psnr_db_of_the_worst_image"] == pytest.approx(30, abs=1e-3)


def test_ranks_agree_or_oppose() -> None:
    values = np.array([3.0, 1.0, 2.0, 9.0])
    assert rank_correlation(values, values**3) == pytest.approx(1)
    assert rank_correlation(values, -values) == pytest.approx(-1)
