"""How does a person see a set of images? In one PNG, row by row."""

from __future__ import annotations

import io
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gacq_deploy.errors import UsageError
from gacq_deploy.spec import Floats
from gacq_deploy.storage.files import write_bytes
from gacq_deploy.storage.outputs import require_output, require_suffix

_GAP = 2
"""Pixels between images."""
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
        UsageError: no images, not images, the path is not a ``.png`` in a folder that is there, or something else lies
            there.
        ResourceError: the disk is full.
    """
    require_output(Path(path), ".png")
    save_png(path, _picture(_grid(to_uint8(images), columns, _zoom(images, zoom))))


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


def save_png(file: str | PathLike[str], picture: Image.Image) -> None:
    """Write one picture, whole or not at all.

    Raises:
        UsageError: the path is not a ``.png``, or the folder cannot be written.
        ResourceError: the disk is full.
    """
    path = Path(file)
    require_suffix(path, ".png")
    data = io.BytesIO()
    picture.save(data, format="PNG")
    write_bytes(path, data.getvalue())
