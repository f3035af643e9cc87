"""What is a network fed of a sampler's timesteps, and by which whole numbers are they known everywhere else?"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gacq_deploy.errors import ModelError

TIMESTEPS_MAX = 100_000
"""The longest schedule that is thought of; a hundred times what models are trained with."""
Keys = NDArray[np.int64]
"""Timesteps on the training scale, rounded."""
ModelTimesteps = NDArray[np.int64] | NDArray[np.float32]
"""The same timesteps as the network is fed them."""


def distinct_keys(timesteps: NDArray[Any]) -> Keys:
    """Return falling timesteps ``[S]`` rounded, and moved by as little as keeps them distinct and from 0 up."""
    keys = np.rint(np.asarray(timesteps, np.float64)).astype(np.int64)
    last = np.arange(len(keys))
    # key + index must fall, or stay: what is above an earlier step comes down to it
    keys = np.minimum.accumulate(keys + last) - last
    return np.asarray(np.maximum(keys, last[::-1]))


def model_timesteps_from(timesteps: NDArray[Any], dtype: str = "int64", scale: float = 1.0) -> ModelTimesteps:
    """Return what the network is fed: ``timesteps * scale`` in the network's type.

    Args:
        timesteps: of the sampler, on the training scale, ``[S]``.
        dtype: ``int64`` or ``float32``.
        scale: 1, or 0.001 for a network that takes sigma.

    Raises:
        ModelError: fractional timesteps, or a scale, for a network that takes whole numbers.
    """
    wide = np.asarray(timesteps, np.float64)
    if dtype == "float32":
        # in double, so that a product by 0.001 is the pipelines' quotient by 1000
        return (wide * scale).astype(np.float32)
    if scale != 1.0 or not np.array_equal(wide, np.rint(wide)):
        fractional = wide[wide != np.rint(wide)]
        shown = f"timestep {fractional[0]:.3f}" if len(fractional) else f"timesteps times {scale:g}"
        raise ModelError(
            f"The sampler asks for {shown}, the model takes whole timesteps.",
            "Choose a sampler with whole timesteps, ddim for instance.",
        )
    return wide.astype(np.int64)


def training_keys(fed: NDArray[Any], scale: float = 1.0) -> Keys:
    """Return the rounded training-scale timesteps of what a network was fed, any shape."""
    if np.issubdtype(fed.dtype, np.integer) and scale == 1.0:
        return fed.astype(np.int64)
    return np.asarray(np.rint(np.asarray(fed, np.float64) / scale).astype(np.int64))
