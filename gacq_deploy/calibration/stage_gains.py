"""Was a stage worth its time? The output's error before and after it, by the measure that parity gates."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gacq_deploy.calibration.output_error import output_losses, sqnr_by_group
from gacq_deploy.calibration.session import Session
from gacq_deploy.samples.calibration_set import timestep_buckets

MEASURE = "measure the output error"
"""The stage, as it is announced."""
_TOLERANCE_DB = 0.05
"""Less is no loss: so much differs between two processors."""


@dataclass(frozen=True)
class StageGain:
    """What a stage took and gave.

    ``sqnr_db`` is the output's SQNR against the float model in the worst timestep bucket, as the gate ``eps_sqnr_db``
    has it, on the held-out samples; ``seconds`` are of the process that wrote it, so short where a stage was resumed.
    """

    seconds: float
    sqnr_db: float
    kept: bool = True
    """False: it lost, and the state before it was restored."""


class StageGains:
    """The output error of the model as it stands, measured after each stage on the same rows."""

    def __init__(self, session: Session) -> None:
        self._session = session
        split = session.split
        self._rows = split.measured
        targets = split.samples.targets[self._rows].astype(np.float64)
        self._signal: NDArray[np.float64] = (targets**2).reshape(len(self._rows), -1).mean(1)
        steps, groups = np.unique(split.samples.timesteps[self._rows], return_inverse=True)
        self.timesteps: NDArray[np.int64] = steps[::-1].copy()
        """Distinct timesteps of the rows, noisiest first [S]."""
        self._steps: NDArray[np.int64] = len(steps) - 1 - groups
        self._buckets = timestep_buckets(split.samples.timesteps[self._rows], session.recipe.parity.buckets)
        self.sqnr_db: dict[str, NDArray[np.float32]] = {}
        """Stage -> SQNR in dB at each of them [S]."""
        self.gains: dict[str, StageGain] = {}
        self._standing = ""
        self._began = time.monotonic()

    def measure(self, stage: str) -> bool:
        """Measure under the name of what was done last; return whether it is at least as good as what stood before."""
        session = self._session
        session.report.stage(MEASURE, -(-len(self._rows) // session.chunk))
        noise = output_losses(
            session.denoiser, session.split.samples, self._rows, session.chunk, session.report.advance
        )
        self.sqnr_db[stage] = sqnr_by_group(self._signal, noise, self._steps)
        worst = float(sqnr_by_group(self._signal, noise, self._buckets).min())
        now = time.monotonic()
        before = self.gains.get(self._standing)
        kept = before is None or worst >= before.sqnr_db - _TOLERANCE_DB
        self.gains[stage] = StageGain(round(now - self._began, 1), round(worst, 2), kept)
        self._began = now
        if kept:
            self._standing = stage
        elif before is not None:
            session.report.note(
                f"{stage} was undone: {before.sqnr_db:.1f} dB before it, {worst:.1f} dB after it "
                "(SQNR in the worst timestep bucket)"
            )
        return kept

    def undo(self, stage: str) -> None:
        """Record that a stage was undone by itself: its own loss rose."""
        self.gains[stage] = replace(self.gains[stage], kept=False)

    def documents(self) -> dict[str, dict[str, Any]]:
        """Return what is recorded of every stage, in the order of calibration."""
        return {stage: asdict(gain) for stage, gain in self.gains.items()}
