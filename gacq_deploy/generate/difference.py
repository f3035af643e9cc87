"""Where do two sets of images differ? One map an image, on one scale, in one set of colours."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gacq_deploy.metrics.images import RANGE, paired
from gacq_deploy.spec import Floats

_STOPS = ((0, 0, 4), (58, 9, 99), (149, 38, 103), (221, 81, 58), (252, 165, 10), (252, 255, 220))
"""Dark to light at even distances, so that the order survives in grey and for colour-blind readers."""
PALETTE: NDArray[np.uint8] = np.stack(
    [
        np.interp(np.linspace(0, len(_STOPS) - 1, 256), range(len(_STOPS)), part)
        for part in zip(*_STOPS, strict=True)
    ],
    axis=1,
).astype(np.uint8)
"""``[256, 3]``: the colour of each level, no difference first."""


def difference_maps(reference: Floats, candidate: Floats) -> tuple[NDArray[np.uint8], float]:
    """Return where images differ, on a scale that the largest difference of all of them fills.

    Args:
        reference: images ``[N, C, H, W]`` in [-1, 1].
        candidate: the same images from the other engine.

    Returns:
        Levels ``[N, H, W]`` of :data:`PALETTE`, 255 at the largest difference; and that difference as a share of the
        range of values, 0 to 1. The largest channel counts.

    Raises:
        UsageError: the sets have different shapes, or are empty.
    """
    a, b = paired(reference, candidate)
    gaps = np.abs(a - b).max(axis=1)
    largest = float(gaps.max())
    levels = np.round(gaps / largest * 255) if largest > 0 else np.zeros_like(gaps)
    return levels.astype(np.uint8), largest / RANGE
