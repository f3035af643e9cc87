"""Is one execution as far from the float model as another?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gacq_deploy.metrics.arrays import by_bucket, sqnr_db
from gacq_deploy.spec import Array

Number = float | None
"""A measured number; None when it was not finite or not measured, and then no gate holds."""


def finite(value: Number) -> Number:
    """Return the value as JSON can hold it: None for NaN and infinities."""
    return float(value) if value is not None and math.isfinite(value) else None


@dataclass(frozen=True)
class ErrorDifference:
    """SQNR against float per timestep bucket, of reference and candidate [buckets], and their gap."""

    by_timestep: tuple[dict[str, int | Number], ...]
    difference_db: float
    worst_bucket: int


def compare_errors(
    exact: Array, reference: Array, candidate: Array, buckets: NDArray[np.int64]
) -> ErrorDifference:
    """Compare the errors of two executions against the float output ``exact``, all ``[M, C, H, W]``."""
    theirs = by_bucket(sqnr_db, exact, reference, buckets)
    ours = by_bucket(sqnr_db, exact, candidate, buckets)
    gaps = np.abs(np.subtract(theirs, ours))
    rows = tuple(
        {
            "bucket": b,
            "reference_sqnr_db": finite(r),
            "candidate_sqnr_db": finite(c),
            "difference_db": finite(g),
        }
        for b, (r, c, g) in enumerate(zip(theirs, ours, gaps, strict=True))
    )
    worst = int(np.argmax(np.where(np.isnan(gaps), np.inf, gaps)))
    return ErrorDifference(rows, float(gaps[worst]), worst)
