"""How do two sets of images differ, and how does a person see it? Values in [-1, 1], or a range that is given."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gacq_deploy.errors import UsageError
from gacq_deploy.spec import Floats

PSNR_CAP = 100.0
"""Decibels reported for identical images, so that means stay finite; 8-bit images end near 50."""

RANGE = 2.0
"""From the darkest to the brightest value of an image."""
_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2
"""(K L)^2 of the paper's K, for a range L of 1: images are moved to [0, 1] first."""


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
    a, b = paired(reference, candidate, limits)
    peak = RANGE if limits is None else limits[1] - limits[0]
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
    a, b = paired(reference, candidate, limits)
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


def paired(
    reference: Floats, candidate: Floats, limits: tuple[float, float] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return both sets in float64, clipped to [-1, 1] unless they have ``limits`` of their own.

    Raises:
        UsageError: the sets have different shapes, or are empty.
    """
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
