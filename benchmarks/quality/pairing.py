"""Is a difference more than chance? Paired differences over seeds, without assuming much."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

_EXACT_LIMIT = 20
"""2^20 sign patterns are a second's work; more seeds than that no benchmark here has."""


@dataclass(frozen=True)
class Spread:
    """Mean, standard deviation (N - 1; 0 for one value) and count."""

    mean: float
    sd: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.sd:.2f}" if self.count > 1 else f"{self.mean:.2f}"


@dataclass(frozen=True)
class PairedTest:
    """Differences b - a of pairs: their spread, a 95 % t-interval of the mean and an exact two-sided p-value."""

    spread: Spread
    low: float
    high: float
    p_value: float
    smallest_p: float
    """What this number of pairs can reach at best: 2 / 2^N."""


def spread(values: Sequence[float]) -> Spread:
    """Return the spread of one or more values."""
    array = np.asarray(values, dtype=np.float64)
    sd = float(array.std(ddof=1)) if len(array) > 1 else 0.0
    return Spread(float(array.mean()), sd, len(array))


def compare_pairs(a: Sequence[float], b: Sequence[float], *, level: float = 0.95) -> PairedTest:
    """Test whether b differs from a, pair by pair.

    The p-value is a sign-flip permutation test over all 2^N patterns: exact if a pair's difference is symmetric
    around 0 when there is no effect. The interval assumes normal differences.

    Raises:
        ValueError: unequal lengths, no pairs, or more than 20.
    """
    if len(a) != len(b) or not 1 <= len(a) <= _EXACT_LIMIT:
        raise ValueError(f"{len(a)} and {len(b)} values are not 1 to {_EXACT_LIMIT} pairs")
    differences = np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64)
    found = spread([float(d) for d in differences])
    half = math.inf
    if found.count > 1:
        quantile = float(stats.t.ppf((1 + level) / 2, found.count - 1))
        half = quantile * found.sd / math.sqrt(found.count)
    return PairedTest(
        found, found.mean - half, found.mean + half, sign_flip_p(differences.tolist()), 2.0 / 2**found.count
    )


def sign_flip_p(differences: Sequence[float]) -> float:
    """Return the share of sign patterns whose mean is at least as far from 0 as the observed one."""
    array = np.asarray(differences, dtype=np.float64)
    observed = abs(float(array.sum()))
    scale = float(np.abs(array).sum())
    patterns = itertools.product((1.0, -1.0), repeat=len(array))
    sums = np.array([abs(float(np.dot(p, array))) for p in patterns])
    # equal sums differ in the last bits, by the order of their terms
    return float((sums >= observed - 1e-12 * scale).mean())
