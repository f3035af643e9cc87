"""A pipeline's trajectories gathered in memory: what the file that is joined batch by batch has to equal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gacq_deploy.models.call_recorder import RecordedCall
from gacq_deploy.models.pipelines import OpenPipeline
from gacq_deploy.models.trajectories.prompted import Wanted, check_lengths, walk_share
from gacq_deploy.progress import Reporter
from gacq_deploy.samples.calibration_set import CalibrationSet, TableRows


def collect_prompted(
    opened: OpenPipeline, recorded: RecordedCall, wanted: Wanted, report: Reporter
) -> CalibrationSet:
    """Run a pipeline's float trajectories and keep what its denoiser saw and answered.

    Raises:
        ModelError: a trajectory calls the denoiser otherwise than the recorded one did.
        CalibrationError: the float model's output is not finite.
    """
    return _join([piece for _, piece in walk_share(opened, recorded, wanted, report)])


def _join(pieces: Sequence[CalibrationSet]) -> CalibrationSet:
    """Put batches one behind the other; tables of conditioning as well."""
    check_lengths([p.trajectory for p in pieces])
    conditioning: dict[str, Any] = {}
    for name in pieces[0].conditioning:
        parts = [rows for p in pieces if isinstance(rows := p.conditioning[name], TableRows)]
        offsets = np.cumsum([0, *(len(p.table) for p in parts)])
        conditioning[name] = TableRows(
            np.concatenate([p.table for p in parts]),
            np.concatenate([p.index + o for p, o in zip(parts, offsets, strict=False)]),
        )
    fed = [p.float_timesteps for p in pieces if p.float_timesteps is not None]
    return CalibrationSet(
        conditioning=conditioning,
        float_timesteps=np.concatenate(fed) if fed else None,
        **{
            name: np.concatenate([getattr(p, name) for p in pieces])
            for name in ("latents", "timesteps", "targets", "trajectory", "step", "validation")
        },
    )
