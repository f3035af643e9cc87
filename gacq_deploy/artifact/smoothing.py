"""What became of a smoothed input? The numbers that calibration chose, in memory and on disk."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gacq_deploy.storage.records import Record


class SmoothingRecord(Record):
    """How an input site is smoothed, on disk; its factor is among the tensors."""

    alpha: float
    norm: str | None


@dataclass(frozen=True)
class InputSmoothing:
    """How the input of a linear layer is smoothed before it is quantized; its codes are those of weight / factor.

    ``factor`` [in] float32, finite and > 0, multiplies the input's last axis: in a multiplication of its own, or, if
    ``norm`` names a normalization layer, in that layer's retrained parameters. ``alpha`` is the share it came from.
    """

    factor: NDArray[np.float32]
    alpha: float
    norm: str | None = None

    def __post_init__(self) -> None:
        if self.factor.dtype != np.float32 or self.factor.ndim != 1:
            raise ValueError(f"factor must be float32 of rank 1, got {self.factor.dtype} {self.factor.shape}")
        if not bool(np.all(np.isfinite(self.factor) & (self.factor >= np.finfo(np.float32).tiny))):
            raise ValueError("every factor must be finite, positive and not denormal")

    @property
    def multiplier(self) -> NDArray[np.float32] | None:
        """What the graph multiplies the input by; None where a norm does."""
        return self.factor if self.norm is None else None

    def record(self) -> SmoothingRecord:
        """Return what the manifest says."""
        return SmoothingRecord(alpha=self.alpha, norm=self.norm)

    @classmethod
    def of(cls, record: SmoothingRecord, factor: NDArray[np.float32]) -> InputSmoothing:
        """Return the smoothing that was recorded."""
        return cls(factor, record.alpha, record.norm)
