"""Samplers of a scheduler's configuration alone: the model around it is nobody's."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Literal

from gacq_deploy.artifact.call import CallRecord, StateRecord, TimestepRecord
from gacq_deploy.artifact.records import ModelRecord
from gacq_deploy.errors import ModelError
from gacq_deploy.models.noise_schedule import recorded_alphas
from gacq_deploy.sampling.ddim import DdimSampler
from gacq_deploy.sampling.loop import Sampler, model_sampler


def record_of(
    config: Mapping[str, Any],
    timestep: TimestepRecord | None = None,
    *,
    sample_shape: tuple[int, ...] = (1, 8, 8),
    conditioning: Mapping[str, dict[str, Any]] | None = None,
) -> ModelRecord:
    """Return what an artifact says of a model with this scheduler."""
    alphas = None
    with suppress(ModelError):
        alphas = recorded_alphas(config)
    return ModelRecord(
        source="tiny",
        revision=None,
        family="UNet2DModel",
        weights_sha256="0",
        prediction_type="epsilon",
        scheduler=dict(config),
        alphas_cumprod=alphas,
        sample_shape=sample_shape,
        conditioning=dict(conditioning or {}),
        call=None
        if timestep is None
        else CallRecord(state=StateRecord(shape=sample_shape), timestep=timestep),
    )


def open_sampler(
    config: Mapping[str, Any],
    steps: int,
    *,
    name: str | None = None,
    eta: float = 0.0,
    dtype: Literal["int64", "float32"] = "int64",
    scale: float = 1.0,
) -> Sampler:
    """Return the sampler called ``name``, of a network that takes timesteps of that type and scale."""
    return model_sampler(
        record_of(config, TimestepRecord(dtype=dtype, scale=scale)), steps, name=name, eta=eta
    )


def ddim(config: Mapping[str, Any], steps: int, eta: float = 0.0) -> DdimSampler:
    """Return DDIM's own sampler."""
    sampler = model_sampler(record_of(config), steps, name="ddim", eta=eta)
    assert isinstance(sampler, DdimSampler)
    return sampler
