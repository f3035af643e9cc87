"""How do two sets of images differ, and how does a person see it? Values in [-1, 1], or a range that is given."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from gacq_deploy.errors import UsageError
from gacq_deploy.storage.files import write_bytes

Floats = NDArray[np.floating[Any]]
PSNR_CAP = 100.0
"""Decibels reported for identical images, so that means stay finite; 8-bit images end near 50."""

_RANGE = 2.0
_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2
_GAP, _LABEL = 2, 16
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


def is_image(shape: Sequence[int]) -> bool:
    """Return whether one state of this shape is a grey or RGB image ``(1 or 3, H, W)``, and not a latent."""
    return len(shape) == 3 and shape[0] in (1, 3)


def value_range(states: Floats) -> tuple[float, float]:
    """Return the least and the largest value of states ``[N, ...]``, apart from each other."""
    low, high = float(states.min()), float(states.max())
    return (low, high) if high > low else (low - 1.0, low + 1.0)


def psnr(
    reference: Floats, candidate: Floats, limits: tuple[float, float] | None = None
) -> NDArray[np.float64]:
    """Return the peak signal-to-noise ratio of each image or latent in dB, ``[N]``.

    Images are clipped to [-1, 1], range 2. With ``limits`` nothing is clipped, and the peak is their distance: latents
    have no range of their own, and clipping would hide errors. Identical images give :data:`PSNR_CAP`.

    Args:
        reference: ``[N, ...]``, of any rank.
        candidate: the same images from the other engine.
        limits: for latents, the :func:`value_range` of the reference.

    Raises:
        UsageError: the sets have different shapes.
    """
    a, b = _pair(reference, candidate, limits)
    peak = _RANGE if limits is None else limits[1] - limits[0]
    error = np.mean((a - b) ** 2, axis=tuple(range(1, a.ndim)))
    least = peak**2 / 10 ** (PSNR_CAP / 10)
    return np.asarray(10 * np.log10(peak**2 / np.maximum(error, least)))


def ssim(
    reference: Floats, candidate: Floats, limits: tuple[float, float] | None = None
) -> NDArray[np.float64]:
    """Return the structural similarity of each image, ``[N]``, mean over positions and channels.

    Wang et al. 2004: Gaussian window 11x11 of sigma 1.5, K = (0.01, 0.03), whole windows only. Both
    are clipped to [-1, 1] and moved to [0, 1] first: the luminance term needs values that are not negative.
    With ``limits`` (as for :func:`psnr`) those are moved to 0 and 1 and nothing is clipped; what the candidate has
    beyond them counts as unlike. Images smaller than 11 pixels take the largest odd window that fits.

    Raises:
        UsageError: the sets have different shapes, or are not ``[N, C, H, W]``.
    """
    a, b = _pair(reference, candidate, limits)
    if a.ndim != 4:
        raise UsageError(f"SSIM takes [N, C, H, W], got {list(a.shape)}.", "Add the missing axes.")
    low, high = limits or (-1.0, 1.0)
    a, b = (a - low) / (high - low), (b - low) / (high - low)
    window = _gaussian(min(_WINDOW, *(size - (size + 1) % 2 for size in a.shape[2:])))
    mean_a, mean_b = _blur(a, window), _blur(b, window)
    var_a = _blur(a * a, window) - mean_a**2
    var_b = _blur(b * b, window) - mean_b**2
    covariance = _blur(a * b, window) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + _C1) / (mean_a**2 + mean_b**2 + _C1)
    structure = (2 * covariance + _C2) / (var_a + var_b + _C2)
    return np.asarray(np.mean(luminance * structure, axis=(1, 2, 3)))


def write_grid(path: Path, images: Floats, *, columns: int | None = None, zoom: int | None = None) -> None:
    """Write images ``[N, C, H, W]`` in [-1, 1] as one PNG, row by row, whole or not at all.

    Args:
        path: ends in ``.png``.
        images: the pictures.
        columns: images in a row; None makes it about square.
        zoom: whole-number enlargement; None brings small images to at least 64 pixels.

    Raises:
        UsageError: no images, not images, or the path is not a ``.png``.
        ResourceError: the disk is full.
    """
    _write_png(path, _grid(to_uint8(images), columns, _zoom(images, zoom)))


def write_comparison(
    path: Path,
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
    a, b = _pair(reference, candidate)
    difference = np.clip(np.abs(a - b) * gain, 0, _RANGE) - 1
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


def _pair(
    reference: Floats, candidate: Floats, limits: tuple[float, float] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if reference.shape != candidate.shape or reference.size == 0:
        raise UsageError(
            f"Images of shapes {list(reference.shape)} and {list(candidate.shape)} cannot be compared.",
            "Generate both sets with the same seeds and number of images.",
        )
    wide = reference.astype(np.float64), candidate.astype(np.float64)
    return wide if limits is not None else (np.clip(wide[0], -1, 1), np.clip(wide[1], -1, 1))


def _gaussian(size: int) -> NDArray[np.float64]:
    offsets = np.arange(size) - size // 2
    window = np.exp(-(offsets**2) / (2 * _SIGMA**2))
    return np.asarray(window / window.sum())


def _blur(images: NDArray[np.float64], window: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the separable weighted mean over every whole window of the last two axes."""
    for axis in (2, 3):
        images = np.lib.stride_tricks.sliding_window_view(images, len(window), axis=axis) @ window
    return images


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


def _write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    _save(path, _picture(pixels))


def _save(path: Path, picture: Image.Image) -> None:
    if path.suffix.lower() != ".png":
        raise UsageError(
            f"{path} does not end in .png.", "Images are written as PNG: they must not change again."
        )
    data = io.BytesIO()
    picture.save(data, format="PNG")
    write_bytes(path, data.getvalue())
