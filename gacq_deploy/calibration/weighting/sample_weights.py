"""How much does each calibration sample count in each block?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gacq_deploy.errors import CalibrationError
from gacq_deploy.samples.calibration_set import CalibrationSet


class SampleWeights(Protocol):
    """One weight per training sample, per block."""

    @property
    def name(self) -> str:
        """Recorded in the artifact's digest: equal names and samples must give equal weights."""

    def for_block(self, block: str, samples: CalibrationSet) -> NDArray[np.float64]:
        """Return ``[N]`` weights of ``samples`` for ``block``, finite, >= 0; they are normalised to mean 1."""


@dataclass(frozen=True)
class UniformWeights:
    """Every sample counts the same."""

    name: str = "uniform"

    def for_block(self, block: str, samples: CalibrationSet) -> NDArray[np.float64]:
        """Return ones."""
        del block
        return np.ones(len(samples))


@dataclass(frozen=True)
class FixedWeights:
    """Weights given by hand: block name -> [N]; blocks without an entry are uniform."""

    by_block: Mapping[str, NDArray[np.float64]]
    name: str

    def for_block(self, block: str, samples: CalibrationSet) -> NDArray[np.float64]:
        """Return the block's weights, or ones."""
        return self.by_block.get(block, np.ones(len(samples)))


def checked_weights(weights: SampleWeights, block: str, samples: CalibrationSet) -> NDArray[np.float64]:
    """Return the weights of a block normalised to mean 1.

    Raises:
        CalibrationError: wrong length, negative, not finite, or all zero.
    """
    raw = np.asarray(weights.for_block(block, samples), dtype=np.float64)
    if raw.shape != (len(samples),):
        raise CalibrationError(
            f"Block '{block}': sample weights have shape {raw.shape}, expected ({len(samples)},).",
            "Give one weight per training sample; validation rows have none.",
        )
    if not bool(np.isfinite(raw).all()) or bool((raw < 0).any()) or not float(raw.sum()) > 0:
        raise CalibrationError(
            f"Block '{block}': sample weights must be finite, >= 0 and not all zero "
            f"(min {raw.min():g}, max {raw.max():g}, sum {raw.sum():g}).",
            "Correct the weights, or use uniform ones.",
        )
    normalised: NDArray[np.float64] = raw * (len(raw) / raw.sum())
    return normalised


def effective_samples(weights: NDArray[np.float64]) -> float:
    """Return Kish's effective sample size (sum w)^2 / sum w^2."""
    return float(weights.sum() ** 2 / (weights**2).sum())
