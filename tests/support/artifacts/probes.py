"""Probes whose quantized outputs are wrong by a known amount at every timestep."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from gacq_deploy.artifact.probe import Probe


def curve_probe(rms: Mapping[int, float], rows: int = 2) -> Probe:
    """Return a probe with ``rows`` states a timestep, each output off by the timestep's RMS error."""
    timesteps = np.repeat(np.array(list(rms), np.int64), rows)
    size = np.repeat(np.array(list(rms.values()), np.float32), rows)
    exact = np.random.default_rng(0).standard_normal((len(timesteps), 1, 4, 4), np.float32)
    sign = np.where(np.arange(16).reshape(1, 1, 4, 4) % 2, 1, -1).astype(np.float32)
    inputs = {"sample": exact, "timestep": timesteps}
    return Probe(inputs, {"float": exact, "input_quant": exact + sign * size[:, None, None, None]}, {})
