"""What would one show of two graphs? One picture that explains itself: pairs of images, labelled, the worst framed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from os import PathLike
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gacq_deploy.errors import UsageError
from gacq_deploy.generate.difference import PALETTE, difference_maps
from gacq_deploy.generate.grid import save_png, to_uint8
from gacq_deploy.metrics.images import psnr
from gacq_deploy.spec import Floats

_SMALL, _LARGE = 128, 256
"""Pixels: smaller images are enlarged by a whole number up to the first, larger ones are reduced to the second."""
_FEW = 4
"""So many pairs or fewer are drawn large, two in a row."""
_WIDTH, _MOST_COLUMNS = 1700, 4
"""Pixels that the pairs of a row may take, and how many there are at most."""
_MARGIN, _SPACE, _GAP, _FRAME = 32, 28, 3, 4
_PAPER, _INK, _SOFT, _WARN = (251, 251, 250), (27, 31, 36), (87, 96, 106), (194, 82, 0)
_TITLE, _BODY = 36, 20
"""Sizes of type in pixels."""


@dataclass(frozen=True)
class _Cell:
    tiles: tuple[Image.Image, ...]
    caption: str
    decibels: float
    worst: bool


def write_comparison(  # noqa: PLR0913 (a public function: each argument is one choice of its caller)
    path: str | PathLike[str],
    reference: Floats,
    candidate: Floats,
    *,
    labels: tuple[str, str] = ("FP", "INT8"),
    title: str = "",
    note: str = "",
    captions: Sequence[str] = (),
    columns: int | None = None,
) -> None:
    """Write each image of two engines side by side with their difference and its PSNR, the worst framed.

    The differences of all images share one scale, which their largest one fills; the last line says how large it is.

    Args:
        path: ends in ``.png``.
        reference: images ``[N, C, H, W]`` in [-1, 1].
        candidate: the same images from the other engine.
        labels: what the first two images of a pair are.
        title: the first line, such as the model's name.
        note: the second line.
        captions: one an image, which stands under it; none: the image's number.
        columns: pairs in a row; None: as many as suit their size.

    Raises:
        UsageError: no images, not images, another number of captions, or the path is not a ``.png``; or the sets have
            different shapes.
        ResourceError: the disk is full.
    """
    said = captions or [f"image {i}" for i in range(len(reference))]
    if len(said) != len(reference):
        raise UsageError(
            f"{len(said)} captions were given for {len(reference)} images.", "Give one an image, or none."
        )
    quality = psnr(reference, candidate)
    maps, largest = difference_maps(reference, candidate)
    least = _SMALL if len(reference) > _FEW else _LARGE
    exact, quantized = (_pictures(images, least) for images in (reference, candidate))
    drawn = [_scaled(Image.fromarray(PALETTE[levels]), least) for levels in maps]
    worst = int(np.argmin(quality))
    cells = [
        _Cell(tiles, said[i], float(quality[i]), i == worst)
        for i, tiles in enumerate(zip(exact, quantized, drawn, strict=True))
    ]
    across = min(len(cells), _fitting(cells) if columns is None else columns)
    if across < 1:
        raise UsageError(f"{columns} columns were asked for.", "Choose 1 or more.")
    legend = (
        f"In each group: {labels[0]}, {labels[1]}, and their difference, from black (none) to light "
        f"({largest:.1%} of the range, the largest here). Framed: the worst."
    )
    save_png(path, _sheet(cells, across, (title, note, legend)))


def _fitting(cells: Sequence[_Cell]) -> int:
    """Return how many pairs stand in a row: as many as fit, in whole rows if they can."""
    room = _WIDTH // (3 * cells[0].tiles[0].width + _SPACE)
    most = max(1, min(_MOST_COLUMNS if len(cells) > _FEW else 2, room))
    return next((n for n in range(most, 1, -1) if len(cells) % n == 0), most)


def _sheet(cells: Sequence[_Cell], columns: int, words: tuple[str, str, str]) -> Image.Image:
    """Lay cells out row by row between a head of two lines and a legend."""
    title, note, legend = words
    tile_width, tile_height = cells[0].tiles[0].size
    width = 3 * tile_width + 2 * _GAP
    height = tile_height + _BODY + 12
    head = _MARGIN + (_TITLE + 12 if title else 0) + (_BODY + 18 if note else 0)
    rows = -(-len(cells) // columns)
    size = (
        2 * _MARGIN + columns * width + (columns - 1) * _SPACE,
        head + rows * (height + _SPACE) + _BODY + _MARGIN,
    )
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    room = size[0] - 2 * _MARGIN
    _write(draw, (_MARGIN, _MARGIN - 8), title, (_TITLE, _INK, room))
    _write(draw, (_MARGIN, head - _BODY - 22), note, (_BODY, _SOFT, room))
    for number, cell in enumerate(cells):
        left = _MARGIN + number % columns * (width + _SPACE)
        _draw_cell(sheet, draw, cell, (left, head + number // columns * (height + _SPACE), width))
    _write(draw, (_MARGIN, size[1] - _MARGIN - _BODY + 4), legend, (_BODY, _SOFT, room))
    return sheet


def _draw_cell(sheet: Image.Image, draw: Any, cell: _Cell, place: tuple[int, int, int]) -> None:
    left, top, width = place
    tile_width, tile_height = cell.tiles[0].size
    if cell.worst:
        box = (left - _FRAME - 2, top - _FRAME - 2, left + width + _FRAME + 1, top + tile_height + _FRAME + 1)
        draw.rectangle(box, outline=_WARN, width=_FRAME)
    for number, tile in enumerate(cell.tiles):
        sheet.paste(tile, (left + number * (tile_width + _GAP), top))
    ink = _WARN if cell.worst else _INK
    shown = f"{cell.decibels:.1f} dB"
    taken = round(_font(_BODY).getlength(shown)) + 12
    below = top + tile_height + 8
    _write(draw, (left, below), cell.caption, (_BODY, _INK, width - taken))
    _write(draw, (left + width - taken + 12, below), shown, (_BODY, ink, taken))


def _write(draw: Any, place: tuple[int, int], text: str, look: tuple[int, tuple[int, int, int], int]) -> None:
    """Write one line of a size and colour, cut where it would be wider than its room."""
    size, colour, room = look
    font = _font(size)
    words = " ".join(text.split())
    if font.getlength(words) > room:
        while words and font.getlength(f"{words}...") > room:
            words = words[:-1]
        words = f"{words.rstrip()}..."
    draw.text(place, words, font=font, fill=colour)


@cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def _pictures(images: Floats, least: int) -> list[Image.Image]:
    return [
        _scaled(Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels), least)
        for pixels in to_uint8(images)
    ]


def _scaled(picture: Image.Image, least: int) -> Image.Image:
    """Return a picture that is large enough to be seen and small enough to be sent; single pixels stay squares."""
    small, large = min(picture.size), max(picture.size)
    if large > _LARGE:
        return picture.resize(
            (max(1, picture.width * _LARGE // large), max(1, picture.height * _LARGE // large)),
            Image.Resampling.BOX,
        )
    zoom = max(1, min(least // small, _LARGE // large))
    return picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)
