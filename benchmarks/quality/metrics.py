"""How far apart are two sets of features? Pure functions on numpy arrays ``[N, D]``; sums in float64.

None of these is an FID or comparable with one: the features come from a small network (see ``features.py``), and the
Fréchet distance is biased in N, so numbers compare only at equal N and with the floor printed beside them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.float32]
_ROWS = 512


def frechet_distance(first: Features, second: Features) -> float:
    """Return ``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))`` of two sets (Heusel et al. 2017).

    Raises:
        ValueError: fewer than two rows, or different widths.
    """
    a, b = _wide(first, second)
    gap = a.mean(0) - b.mean(0)
    one, two = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # tr (C1 C2)^(1/2) = tr (R C2 R)^(1/2) with R = C1^(1/2): symmetric, so no complex square root is needed
    values, vectors = np.linalg.eigh(np.atleast_2d(one))
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    inner = np.linalg.eigvalsh(root @ np.atleast_2d(two) @ root)
    cross = float(np.sqrt(np.maximum(inner, 0)).sum())
    return float(gap @ gap + np.trace(np.atleast_2d(one)) + np.trace(np.atleast_2d(two)) - 2 * cross)


def kernel_distance(first: Features, second: Features) -> float:
    """Return the unbiased squared MMD under ``k(x, y) = (x.y / D + 1)^3`` (Binkowski et al. 2018).

    Unbiased: its mean over samples of one distribution is 0, and single values may be negative.

    Raises:
        ValueError: as for :func:`frechet_distance`.
    """
    a, b = _wide(first, second)
    within = [_kernel_sum(x, x) - float((((x * x).sum(1) / x.shape[1] + 1) ** 3).sum()) for x in (a, b)]
    m, n = len(a), len(b)
    between = _kernel_sum(a, b)
    return within[0] / (m * (m - 1)) + within[1] / (n * (n - 1)) - 2 * between / (m * n)


@dataclass(frozen=True)
class Manifold:
    """Share of generated images inside the real ones' manifold, and the reverse."""

    precision: float
    recall: float


def precision_recall(real: Features, generated: Features, k: int = 3) -> Manifold:
    """Return improved precision and recall (Kynkäänniemi et al. 2019): balls of the k-th neighbour's radius.

    Raises:
        ValueError: fewer than ``k + 1`` rows in a set, or different widths.
    """
    a, b = _wide(real, generated)
    if min(len(a), len(b)) <= k:
        raise ValueError(f"{len(a)} and {len(b)} rows are too few for {k} neighbours")
    return Manifold(precision=_share_inside(b, a, k), recall=_share_inside(a, b, k))


def paired_distance(reference: Features, candidate: Features) -> float:
    """Return the mean distance between rows of one index: the same seed from both models.

    Raises:
        ValueError: different shapes.
    """
    if reference.shape != candidate.shape:
        raise ValueError(f"sets of shapes {reference.shape} and {candidate.shape} are not paired")
    return float(np.linalg.norm(reference.astype(np.float64) - candidate, axis=1).mean())


def spread_within_classes(features: Features, labels: NDArray[np.int64]) -> float:
    """Return the mean distance of two different rows of one class, every class counting the same.

    Raises:
        ValueError: no class has two rows.
    """
    means = []
    for label in np.unique(labels):
        rows = features[labels == label].astype(np.float64)
        if len(rows) > 1:
            means.append(float(_distances(rows, rows).sum() / (len(rows) * (len(rows) - 1))))
    if not means:
        raise ValueError("no class has two rows")
    return float(np.mean(means))


def _wide(first: Features, second: Features) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(f"feature sets of shapes {first.shape} and {second.shape} do not compare")
    if min(len(first), len(second)) < 2:
        raise ValueError("a feature set needs two rows")
    return first.astype(np.float64), second.astype(np.float64)


def _kernel_sum(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    blocks = (a[i : i + _ROWS] @ b.T for i in range(0, len(a), _ROWS))
    return float(sum(((block / a.shape[1] + 1) ** 3).sum() for block in blocks))


def _distances(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    squares = (a * a).sum(1)[:, None] + (b * b).sum(1)[None] - 2 * (a @ b.T)
    result: NDArray[np.float64] = np.sqrt(np.maximum(squares, 0))
    if a is b:
        np.fill_diagonal(result, 0)  # rounding leaves about 1e-7 there
    return result


def _share_inside(queries: NDArray[np.float64], centres: NDArray[np.float64], k: int) -> float:
    """Return the share of queries that lie in the ball of at least one centre."""
    # the nearest neighbour of a centre is itself
    radii = np.partition(_distances(centres, centres), k, axis=1)[:, k]
    inside = [
        (_distances(queries[i : i + _ROWS], centres) <= radii).any(1) for i in range(0, len(queries), _ROWS)
    ]
    return float(np.concatenate(inside).mean())
