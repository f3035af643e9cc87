"""How far may learned sample weights go? Into a range, at mean 1, with enough samples left that count."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from gacq_deploy.calibration.weighting.sample_weights import effective_samples

_SMALLEST_LOG = -700.0
"""exp of it is still a normal float64, and so is exp of its negative."""
_BISECTIONS = 200
"""Beyond what the precision of a double can tell apart."""


def bounded_weights(
    logits: NDArray[np.float64], temperature: float, weight_range: tuple[float, float], min_effective: float
) -> tuple[NDArray[np.float64], float]:
    """Return the weights softmax(logits / temperature) [N] in the range, mean 1, and the temperature that this took.

    It is raised only as far as (sum w)^2 / sum w^2 >= ``min_effective`` N demands.
    """

    def weights_at(tau: float) -> NDArray[np.float64]:
        scaled = logits / tau
        return project_weights(np.exp(np.maximum(scaled - scaled.max(), _SMALLEST_LOG)), weight_range)

    low = high = temperature
    # sums round: without the slack all samples, min_effective = 1, would never be reached
    least = min_effective * len(logits) * (1 - 1e-12)
    while effective_samples(weights_at(high)) < least:
        low, high = high, 2 * high
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        enough = effective_samples(weights_at(middle)) >= least
        low, high = (low, middle) if enough else (middle, high)
    return weights_at(high), high


def project_weights(weights: NDArray[np.float64], weight_range: tuple[float, float]) -> NDArray[np.float64]:
    """Return clip(k weights, range) [N] with the k that makes the mean 1; ``weights`` > 0, the range includes 1.

    Weights that stay inside the range keep their ratios, which clipping and rescaling would not give.
    """
    low, high = weight_range
    logs = np.log(weights)
    below, above = math.log(low) - float(logs.max()), math.log(high) - float(logs.min())
    for _ in range(_BISECTIONS):
        middle = (below + above) / 2
        if np.clip(np.exp(np.minimum(logs + middle, -_SMALLEST_LOG)), low, high).mean() < 1:
            below = middle
        else:
            above = middle
    return np.clip(np.exp(np.minimum(logs + above, -_SMALLEST_LOG)), low, high)
