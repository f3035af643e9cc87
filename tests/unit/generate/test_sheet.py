from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gacq_deploy.errors import UsageError
from gacq_deploy.generate.difference import PALETTE
from gacq_deploy.generate.grid import to_uint8
from gacq_deploy.generate.sheet import write_comparison
from gacq_deploy.spec import Array

WARN = (194, 82, 0)


def _pixels(path: Path) -> Array:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def _pair(channels: int, side: int, count: int = 4) -> tuple[Array, Array]:
    a = np.random.default_rng(0).uniform(-1, 1, (count, channels, side, side)).astype(np.float32) * 0.5
    b = a.copy()
    b[2, :, 3, 5] += 0.4
    return a, b


def _places(sheet: Array, block: Array) -> list[tuple[int, int]]:
    """Return where a block of pixels stands in the sheet, row and column."""
    height, width = block.shape[:2]
    found = []
    for row, column in np.argwhere((sheet == block[0, 0]).all(-1)).tolist():
        part = sheet[row : row + height, column : column + width]
        if part.shape == block.shape and bool((part == block).all()):
            found.append((row, column))
    return found


@pytest.mark.parametrize("channels", [1, 3])
def test_each_pair_stands_beside_its_difference(tmp_path: Path, channels: int) -> None:
    a, b = _pair(channels, 56)
    write_comparison(tmp_path / "sheet.png", a, b)
    sheet = _pixels(tmp_path / "sheet.png")
    zoomed = to_uint8(np.stack([a[2], b[2]])).repeat(4, axis=1).repeat(4, axis=2)
    shown = np.broadcast_to(zoomed, (*zoomed.shape[:3], 3))
    exact = _places(sheet, shown[0])
    quantized = _places(sheet, shown[1])
    assert len(exact) == len(quantized) == 1
    assert exact[0][0] == quantized[0][0]
    assert 224 <= quantized[0][1] - exact[0][1] < 232
    row, column = exact[0][0], 2 * quantized[0][1] - exact[0][1]
    difference = sheet[row : row + 224, column : column + 224]
    assert difference[12, 20].tolist() == PALETTE[255].tolist()
    assert difference[0, 0].tolist() == PALETTE[0].tolist()


def test_the_worst_is_framed_and_no_other(tmp_path: Path) -> None:
    a, b = _pair(1, 56)
    write_comparison(tmp_path / "sheet.png", a, b, columns=2)
    sheet = _pixels(tmp_path / "sheet.png")
    rows, columns = np.nonzero((sheet == WARN).all(-1))
    # the third pair of four in two columns: below, left; its decibels are in the same ink
    first = np.broadcast_to(to_uint8(a[:1])[0].repeat(4, 0).repeat(4, 1), (224, 224, 3))
    assert all(int(rows.min()) > top + 224 for top, _ in _places(sheet, first))
    assert int(columns.max()) < sheet.shape[1] // 2


@pytest.mark.parametrize(("side", "count"), [(16, 12), (64, 12), (96, 8), (512, 4), (16, 1)])
def test_a_sheet_has_a_size_that_people_can_post(tmp_path: Path, side: int, count: int) -> None:
    a = np.zeros((count, 3, side, side), np.float32)
    write_comparison(
        tmp_path / "sheet.png", a, a, title="fashion16", note="12 images", captions=["seed"] * count
    )
    height, width = _pixels(tmp_path / "sheet.png").shape[:2]
    assert count == 1 or 1200 <= width <= 1800
    assert height <= 1800


# of two rows of pairs of 256 pixels, between a head of two lines and a legend
PLACES = {
    "title": (24, 64),
    "note": (76, 110),
    "captions": (384, 404),
    "decibels": (384, 404),
    "legend": (754, 780),
}


@pytest.mark.parametrize("part", PLACES)
def test_a_sheet_explains_itself(tmp_path: Path, part: str) -> None:
    a, b = _pair(1, 16, count=3)
    words: dict[str, Any] = {
        "title": "my-ddpm",
        "note": "3 images",
        "captions": ["seed 0", "seed 1", "seed 2"],
    }
    write_comparison(tmp_path / "one.png", a, b, **words)
    if part == "captions":
        words[part] = ["seed 7", "seed 1", "seed 2"]
    elif part in words:
        words[part] = "other"
    else:
        b[0, 0, 0, 0] += 0.5  # the largest of all
    write_comparison(tmp_path / "other.png", a, b, **words)
    before, after = _pixels(tmp_path / "one.png"), _pixels(tmp_path / "other.png")
    first, last = PLACES[part]
    assert bool((before != after)[first:last].any())


def test_words_that_do_not_fit_are_cut(tmp_path: Path) -> None:
    a, b = _pair(1, 16, count=3)
    short = ["a", "b", "c"]
    long = ["an oil painting of a lake in the mountains " * 20, "b", "c"]
    write_comparison(tmp_path / "short.png", a, b, captions=short, title="t", note="n")
    write_comparison(tmp_path / "long.png", a, b, captions=long, title="t" * 500, note="n\n" * 300)
    assert _pixels(tmp_path / "short.png").shape == _pixels(tmp_path / "long.png").shape


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    a, b = _pair(1, 16)
    for call in (
        lambda: write_comparison(tmp_path / "s.jpg", a, b),
        lambda: write_comparison(tmp_path / "s.png", a, b[:1]),
        lambda: write_comparison(tmp_path / "s.png", a, b, captions=["one"]),
        lambda: write_comparison(tmp_path / "s.png", a, b, columns=-1),
        lambda: write_comparison(tmp_path / "s.png", a[:, :, 0], b[:, :, 0]),
        lambda: write_comparison(tmp_path / "s.png", a.repeat(4, 1), b.repeat(4, 1)),
        lambda: write_comparison(tmp_path / "s.png", a[:0], b[:0]),
    ):
        with pytest.raises(UsageError):
            call()
    assert not list(tmp_path.iterdir())
