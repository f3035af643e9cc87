"""Which noising process does a model run backwards, is there a sampler that follows it, and what is its schedule?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers import DDIMScheduler

from gacq_deploy.errors import ModelError
from gacq_deploy.models.loading import FAILURES, first_line
from gacq_deploy.sampling.ddim import HINT, parse_scheduler
from gacq_deploy.sampling.flow import FLOW_CLASS, parse_flow
from gacq_deploy.sampling.loop import native_sampler

_PREDICTIONS = ("epsilon", "v_prediction", "sample")


def check_process(config: Mapping[str, Any], where: str, *, drawn: bool = False) -> None:
    """Refuse a scheduler's configuration that sampling would refuse after hours.

    Args:
        config: of the model's scheduler, as in ``scheduler_config.json``.
        where: said in errors.
        drawn: the trajectories are this project's own, which are DDIM's.

    Raises:
        ModelError: an unknown prediction type, or a process that no sampler here follows.
    """
    if config.get("_class_name") == FLOW_CLASS and not drawn:
        parse_flow(config)
        return
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in _PREDICTIONS:
        raise ModelError(
            f"{where}: prediction_type {prediction!r} is not supported.",
            f"Supported: {', '.join(_PREDICTIONS)}.",
        )
    alphas_cumprod(config)


def recorded_alphas(config: Mapping[str, Any]) -> tuple[float, ...] | None:
    """Return :func:`alphas_cumprod` for a model's record, or None if another sampler than DDIM is its own."""
    return alphas_cumprod(config) if native_sampler(config) == "ddim" else None


def alphas_cumprod(config: Mapping[str, Any]) -> tuple[float, ...]:
    """Return the cumulative products of ``1 - beta`` [T] float32 of a model's scheduler, as diffusers makes them.

    Raises:
        ModelError: another noising process than DDIM's, a schedule that diffusers does not know, or ``trained_betas``
            of another length than ``num_train_timesteps``.
    """
    total = parse_scheduler(config).num_train_timesteps
    try:
        alphas = DDIMScheduler.from_config(dict(config)).alphas_cumprod  # type: ignore[no-untyped-call]
    except FAILURES as error:
        raise ModelError(f"Scheduler configuration: {first_line(error)}", HINT) from error
    if len(alphas) != total:
        raise ModelError(
            f"trained_betas has {len(alphas)} values, num_train_timesteps is {total}.",
            HINT,
        )
    if not bool(((alphas >= 0) & (alphas <= 1)).all()):
        raise ModelError(
            "Scheduler configuration: its betas make cumulative alphas that are not all between 0 and 1.",
            "Restore beta_start, beta_end and trained_betas from where the model came from.",
        )
    return tuple(alphas.tolist())
