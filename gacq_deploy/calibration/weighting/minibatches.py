"""Which rows does a mini-batch take? Each as often as the others, each group in its share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Deck:
    """Rows dealt in random order: each once before any comes again."""

    def __init__(self, rows: NDArray[np.int64]) -> None:
        self._rows = rows
        self._rest: NDArray[np.int64] = rows[:0]

    def draw(self, count: int, generator: np.random.Generator) -> NDArray[np.int64]:
        """Return ``count`` distinct rows; all of them, in order, if there are no more."""
        if count >= len(self._rows):
            return self._rows
        taken, self._rest = self._rest[:count], self._rest[count:]
        missing = count - len(taken)
        if missing:
            # what ended the last round may not come twice in one draw
            fresh = generator.permutation(self._rows[~np.isin(self._rows, taken)])
            self._rest = generator.permutation(np.concatenate([fresh[missing:], taken]))
            taken = np.concatenate([taken, fresh[:missing]])
        return taken


def stratify(sizes: NDArray[np.int64], batch: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Return how many of ``batch`` < sum(sizes) samples each group gives.

    Proportional on average (systematic sampling); at least 1 of each where the batch has room for that.
    """
    edges = np.concatenate([[0.0], np.cumsum(sizes * (batch / sizes.sum()))])
    # a sum of rounded shares may miss it, and the batch would lack a row
    edges[-1] = batch
    quotas = np.diff(np.floor(edges + generator.random())).astype(np.int64)
    while batch >= len(sizes) and bool((quotas == 0).any()):
        quotas[np.argmax(quotas)] -= 1
        quotas[np.argmin(quotas)] += 1
    return np.minimum(quotas, sizes)
