"""Which noising process does a model run backwards, and is there a sampler that follows it?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gacq_deploy.errors import ModelError
from gacq_deploy.sampling.ddim import alphas_cumprod, parse_scheduler
from gacq_deploy.sampling.flow import FLOW_CLASS, parse_flow

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
    alphas_cumprod(parse_scheduler(config))
