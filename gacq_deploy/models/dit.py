"""How is diffusers' DiTTransformer2DModel called? With class labels; of a learned variance nothing is kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gacq_deploy.artifact.call import CallRecord, StateRecord
from gacq_deploy.errors import ModelError
from gacq_deploy.models.base import Family
from gacq_deploy.models.unet2d import class_labels

_CHANNELS = 4
"""diffusers' own default of ``in_channels``."""


def _describe(config: Mapping[str, Any], shape: tuple[int, ...]) -> CallRecord:
    taken = int(config.get("in_channels", _CHANNELS))
    made = int(config.get("out_channels") or taken)
    if made not in (taken, 2 * taken):
        raise ModelError(
            f"DiTTransformer2DModel takes {taken} channels and predicts {made} (in_channels, out_channels).",
            "Supported: as many, or twice as many (a learned variance).",
        )
    # the table's last row, behind these, is the null class of guidance
    return CallRecord(
        state=StateRecord(path=("hidden_states",), shape=shape),
        arguments=(class_labels(int(config.get("num_embeds_ada_norm") or 1000)),),
        constants={"return_dict": False},
    )


DIT = Family(name="DiTTransformer2DModel", describe=_describe)
