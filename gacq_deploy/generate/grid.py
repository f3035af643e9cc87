"""How does a person see images, and how two sets of them differ?"""

from __future__ import annotations

import io
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from gacq_deploy.errors import UsageError
from gacq_deploy.metrics.images import RANGE, paired
from gacq_deploy.spec import Floats
from gacq_deploy.storage.files import require_folder_for, write_bytes

_GAP, _LABEL = 2, 16
"""Pixels between images, and of the line that a heading stands on."""
_BACKGROUND = 255


def to_uint8(images: Floats) -> NDArray[np.uint8]:
    """Return images ``[N, C, H, W]`` in [-1, 1] as ``[N, H, W, C]`` uint8, rounded and clipped.

    Raises:
        UsageError: not rank 4, or not 1 or 3 channels.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise UsageError(
            f"An array of shape {list(images.shape)} is not a set of grey or RGB images.",
            "Latents need their decoder before they can be shown.",
        )
    scaled = np.clip(np.round((images.astype(np.float64) + 1) * 127.5), 0, 255)
    return scaled.astype(np.uint8).transpose(0, 2, 3, 1)


def write_grid(
    path: str | PathLike[str], images: Floats, *, columns: int | None = None, zoom: int | None = None
) -> None:
    """Write images ``[N, C, H, W]`` in [-1, 1] as one PNG, row by row, whole or not at all.

    Args:
        path: ends in ``.png``.
        images: the pictures.
        columns: images in a row; None makes it about square.
        zoom: whole-number enlargement; None brings small images to at least 64 pixels.

    Raises:
        UsageError: no images, not images, or the path is not a ``.png`` in a folder that is there.
        ResourceError: the disk is full.
    """
    _write_png(path, _grid(to_uint8(images), columns, _zoom(images, zoom)))


def write_comparison(
    path: str | PathLike[str],
    reference: Floats,
    candidate: Floats,
    *,
    labels: tuple[str, str] = ("FP", "INT8"),
    gain: float = 8.0,
    columns: int | None = None,
) -> None:
    """Write three labelled grids side by side: reference, candidate, absolute difference times ``gain``.

    Args:
        path: ends in ``.png``.
        reference: images ``[N, C, H, W]`` in [-1, 1].
        candidate: the same images from the other engine.
        labels: headings of the first two grids.
        gain: a difference of 1/gain of the range shows white.
        columns: images in a row of each grid.

    Raises:
        UsageError: as for :func:`write_grid`, or the sets have different shapes.
        ResourceError: the disk is full.
    """
    a, b = paired(reference, candidate)
    difference = np.clip(np.abs(a - b) * gain, 0, RANGE) - 1
    headings = (*labels, f"difference x{gain:g}")
    zoom = _zoom(reference, None)
    panels = [_grid(to_uint8(images), columns, zoom) for images in (a, b, difference)]
    font = ImageFont.load_default()
    widths = [
        max(p.shape[1], round(font.getlength(h)) + 2 * _GAP) for p, h in zip(panels, headings, strict=True)
    ]
    height, channels = panels[0].shape[0] + _LABEL, panels[0].shape[2]
    sheet = np.full((height, sum(widths) + 4 * _GAP * 2, channels), _BACKGROUND, np.uint8)
    lefts, left = [], 0
    for panel, width in zip(panels, widths, strict=True):
        sheet[_LABEL:, left : left + panel.shape[1]] = panel
        lefts.append(left)
        left += width + 4 * _GAP
    picture = _picture(sheet)
    draw = ImageDraw.Draw(picture)
    for left, heading in zip(lefts, headings, strict=True):
        draw.text((left + _GAP, 2), heading, font=font, fill=0 if channels == 1 else (0, 0, 0))
    _save(path, picture)


def _zoom(images: Floats, zoom: int | None) -> int:
    if zoom is not None and zoom < 1:
        raise UsageError(f"Zoom {zoom} is below 1.", "Choose a whole number from 1.")
    return zoom or max(1, -(-64 // max(1, min(images.shape[-2:]))))


def _grid(images: NDArray[np.uint8], columns: int | None, zoom: int) -> NDArray[np.uint8]:
    """Return one array ``[rows, columns, C]`` with all images ``[N, H, W, C]``, a gap around each."""
    count = len(images)
    if count == 0:
        raise UsageError("There are no images to write.", "Generate at least one.")
    columns = min(count, columns or int(np.ceil(np.sqrt(count))))
    if columns < 1:
        raise UsageError(f"{columns} columns were asked for.", "Choose 1 or more.")
    images = images.repeat(zoom, axis=1).repeat(zoom, axis=2)
    height, width, channels = images.shape[1:]
    rows = -(-count // columns)
    shape = (rows * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP, channels)
    grid = np.full(shape, _BACKGROUND, np.uint8)
    for number, image in enumerate(images):
        top = (number // columns) * (height + _GAP) + _GAP
        left = (number % columns) * (width + _GAP) + _GAP
        grid[top : top + height, left : left + width] = image
    return grid


def _picture(pixels: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def _write_png(path: str | PathLike[str], pixels: NDArray[np.uint8]) -> None:
    _save(path, _picture(pixels))


def _save(file: str | PathLike[str], picture: Image.Image) -> None:
    path = Path(file)
    if path.suffix.lower() != ".png":
        raise UsageError(
            f"{path} does not end in .png.", "Images are written as PNG: they must not change again."
        )
    require_folder_for(path)
    data = io.BytesIO()
    picture.save(data, format="PNG")
    write_bytes(path, data.getvalue())
