"""How do numbers move that a mini-batch only sometimes visits?"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_MEAN, _SQUARE = 0.9, 0.999
"""The paper's own defaults for the decay of both moments."""
_EPSILON = 1e-6
"""Gradients here are relative to the loss: one part in a million is no reason for a full step."""


class SparseAdam:
    """Adam (Kingma and Ba 2015) whose moments and step counts belong to each entry: only visited entries move.

    torch's SparseAdam counts steps for all entries together, which makes first visits depend on how late they come.
    """

    def __init__(self, count: int) -> None:
        self._mean = np.zeros(count)
        self._square = np.zeros(count)
        self._steps = np.zeros(count, dtype=np.int64)

    def step(
        self, values: NDArray[np.float64], index: NDArray[np.int64], gradient: NDArray[np.float64], lr: float
    ) -> None:
        """Move ``values[index]`` in place; ``index`` without repeats."""
        self._steps[index] += 1
        self._mean[index] += (1 - _MEAN) * (gradient - self._mean[index])
        self._square[index] += (1 - _SQUARE) * (gradient**2 - self._square[index])
        mean = self._mean[index] / (1 - _MEAN ** self._steps[index])
        square = self._square[index] / (1 - _SQUARE ** self._steps[index])
        values[index] -= lr * mean / (np.sqrt(square) + _EPSILON)
