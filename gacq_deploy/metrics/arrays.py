"""How far apart are two arrays? Pure functions on numpy arrays; every sum is taken in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from gacq_deploy.spec import Array

CEILING_DB = 300.0
"""SQNR of two equal arrays: JSON has no infinity."""


def sqnr_db(reference: Array, candidate: Array) -> float:
    """Return 10 log10(|reference|^2 / |reference - candidate|^2), at most 300; NaN if not finite."""
    wide = reference.astype(np.float64)
    noise = float(np.sum((wide - candidate) ** 2))
    signal = float(np.sum(wide**2))
    if not (math.isfinite(noise) and math.isfinite(signal)):
        return math.nan
    if noise == 0:
        return CEILING_DB
    return 10 * math.log10(max(signal, np.finfo(np.float64).tiny) / noise)


def cosine(reference: Array, candidate: Array) -> float:
    """Return the cosine of the angle between two arrays; two zero arrays agree."""
    a, b = reference.astype(np.float64).ravel(), candidate.astype(np.float64).ravel()
    if np.array_equal(a, b) and np.isfinite(a).all():
        return 1.0
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norm if norm else 0.0


def relative_error(reference: Array, candidate: Array) -> float:
    """Return max |reference - candidate| / max |reference| of the worst row; NaN if not finite."""
    wide = reference.reshape(len(reference), -1).astype(np.float64)
    gap = np.abs(wide - candidate.reshape(wide.shape)).max(axis=1)
    scale = np.abs(wide).max(axis=1)
    return float(np.max(np.where(gap == 0, 0.0, gap / np.maximum(scale, np.finfo(np.float64).tiny))))


def euclidean_error(candidate: Array, reference: Array) -> float:
    """Return ``|candidate - reference| / |reference|`` in Euclidean norms, computed in float64."""
    difference = candidate.astype(np.float64) - reference
    return float(np.linalg.norm(difference) / max(float(np.linalg.norm(reference.astype(np.float64))), 1e-30))


def equal_share(reference: Array, candidate: Array, rtol: float) -> float:
    """Return the share of values within ``rtol`` times the largest |reference|; NaN is never equal."""
    wide = reference.astype(np.float64)
    return float(np.mean(np.abs(wide - candidate) <= rtol * np.abs(wide).max()))


def by_bucket(
    metric: Callable[[Array, Array], float], reference: Array, candidate: Array, buckets: NDArray[np.int64]
) -> list[float]:
    """Return ``metric`` over the rows of each bucket 0, 1, ..., all rows of a bucket pooled."""
    return [metric(reference[buckets == b], candidate[buckets == b]) for b in range(int(buckets.max()) + 1)]
