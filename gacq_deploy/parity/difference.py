"""Is the candidate as far from the float model as the reference is, and how much of that is noise?"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gacq_deploy.backends.base import Engine, Feeds
from gacq_deploy.backends.batches import run_in_batches
from gacq_deploy.metrics.arrays import sqnr_db
from gacq_deploy.metrics.error_difference import Number, finite
from gacq_deploy.spec import Array

INPUT_NOISE = 1e-5
"""Input noise relative to the RMS of the sample, for the noise floor."""
ErrorMeasure = Callable[[Array, Array], float]


def measure_noise_floor(
    engine: Engine, inputs: Feeds, outputs: Array, *, runs: int, batch: int, error: ErrorMeasure | None = None
) -> dict[str, Number]:
    """Return what repeating a run and disturbing its input changes, to judge every other figure by.

    Args:
        engine: runs ``inputs`` again.
        inputs: name -> ``[M, ...]``.
        outputs: the engine's own of an earlier run, ``[M, C, H, W]``.
        runs: repetitions; each disturbs the sample by other noise of :data:`INPUT_NOISE`.
        batch: rows run together.
        error: the gap between the errors of (outputs, disturbed outputs) against float, in dB.

    Returns:
        ``rerun_max_abs``, the largest difference between identical runs; ``input_noise_sqnr_db``, the lowest
        SQNR of disturbed outputs; ``difference_db``, the largest ``error``.
    """
    rng = np.random.default_rng(0)
    sample = inputs["sample"]
    size = np.float32(INPUT_NOISE * np.sqrt(np.mean(sample.astype(np.float64) ** 2)))
    reruns, levels, gaps = [], [], []
    for _ in range(runs):
        reruns.append(float(np.abs(run_in_batches(engine, inputs, batch) - outputs).max()))
        noise = size * rng.standard_normal(sample.shape, np.float32)
        disturbed = run_in_batches(engine, {**inputs, "sample": sample + noise}, batch)
        levels.append(sqnr_db(outputs, disturbed))
        if error is not None:
            gaps.append(error(outputs, disturbed))
    floor = {
        "rerun_max_abs": finite(max(reruns)),
        "input_noise": INPUT_NOISE,
        "input_noise_sqnr_db": finite(min(levels)),
    }
    return {**floor, "difference_db": finite(max(gaps))} if gaps else floor
