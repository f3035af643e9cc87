"""Which weights follow from a sample's timestep alone? The simple ones that learned weights must beat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gacq_deploy.samples.calibration_set import CalibrationSet


@dataclass(frozen=True)
class SkewedWeights:
    """How often PTQ4DM (Shang et al. 2023) would have taken each sample, in the given stages.

    It draws a trajectory's timesteps from a normal distribution of mean 0.4 T and deviation 0.4 T, clipped to [0, T):
    more clean ones than noisy ones. Here each draw falls on the nearest timestep that was kept, as many draws as kept
    timesteps, and a sample's weight is its number of draws.
    """

    total: int
    seed: int
    stages: tuple[bool, bool]

    @property
    def name(self) -> str:
        """Recorded in the artifact's digest."""
        return f"ptq4dm-{self.total}-{self.seed}-{self.stages}"

    def for_block(self, block: str, samples: CalibrationSet) -> NDArray[np.float64]:
        """Return ``[N]`` counts."""
        if not self.stages[block == "polish"]:
            return np.ones(len(samples))
        counts = np.zeros(len(samples))
        for trajectory in np.unique(samples.trajectory):
            rows = np.flatnonzero(samples.trajectory == trajectory)
            generator = np.random.Generator(np.random.Philox(key=[self.seed, int(trajectory)]))
            drawn = generator.normal(0.4 * self.total, 0.4 * self.total, len(rows)).clip(0, self.total - 1)
            nearest = np.abs(drawn[:, None] - samples.timesteps[rows][None]).argmin(1)
            np.add.at(counts, rows[nearest], 1)
        return counts


@dataclass(frozen=True)
class TiltedWeights:
    """Weights exp(tilt * t / T) in the given stages: above 0 the noisy steps count more."""

    total: int
    tilt: float
    stages: tuple[bool, bool]

    @property
    def name(self) -> str:
        """Recorded in the artifact's digest."""
        return f"tilt-{self.total}-{self.tilt:g}-{self.stages}"

    def for_block(self, block: str, samples: CalibrationSet) -> NDArray[np.float64]:
        """Return ``[N]`` factors."""
        if not self.stages[block == "polish"]:
            return np.ones(len(samples))
        return np.exp(self.tilt * samples.timesteps / self.total)
