"""Which range does each activation have? Estimated on the float model, once, and kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from gacq_deploy.calibration.checkpoint import Checkpoint, scalar
from gacq_deploy.calibration.replay import full_pass
from gacq_deploy.calibration.session import Session
from gacq_deploy.quant.prepare import estimate_activation_scales
from gacq_deploy.quant.smoothing import Smoothing

RANGES = "estimate ranges"
"""The stage, as it is announced."""


def ensure_ranges(
    session: Session, checkpoint: Checkpoint, smoothing: Mapping[str, Smoothing]
) -> dict[str, float]:
    """Load the activation scales by tie, or estimate them on the training samples.

    Raises:
        CalibrationError: an activation is not finite.
    """
    done = checkpoint.get("ranges")
    if done is None:
        samples = session.split.samples.rows(session.split.training)
        if any(e.site.role != "weight" for e in session.plan):
            # twice over the samples: the largest values, then histograms up to them
            session.report.stage(RANGES, 2 * -(-len(samples) // session.chunk))

        def run() -> Iterator[None]:
            for _ in full_pass(session.denoiser, samples, session.chunk):
                session.report.advance()
                yield

        module, plan = session.denoiser.module, session.plan
        scales = estimate_activation_scales(module, plan, run, smoothing)
        checkpoint.put("ranges", {tie: scalar(value) for tie, value in scales.items()})
        done = checkpoint.get("ranges")
        assert done is not None
    return {tie: float(value) for tie, value in done.items()}
