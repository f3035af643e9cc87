"""How is diffusers' DiTTransformer2DModel called? With class labels; of a learned variance nothing is kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn

from gacq_deploy.errors import ModelError
from gacq_deploy.models.base import Conditioning, Family

_CHANNELS = 4
"""diffusers' own default of ``in_channels``."""


def _call(module: nn.Module, sample: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
    output: Tensor = module(sample, timestep, conditioning["class_labels"], return_dict=False)[0]
    # models with a learned variance give [noise, variance]; DDIM and its kin have no use for the second half
    return output[:, : sample.shape[1]]


def _conditioning(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    taken = int(config.get("in_channels", _CHANNELS))
    made = int(config.get("out_channels") or taken)
    if made not in (taken, 2 * taken):
        raise ModelError(
            f"DiTTransformer2DModel takes {taken} channels and predicts {made}.",
            "Supported: as many, or twice as many (a learned variance).",
        )
    # the table's last row, behind these, is the null class of guidance
    classes = int(config.get("num_embeds_ada_norm") or 1000)
    return {"class_labels": {"dtype": "int64", "shape": [], "num_classes": classes}}


DIT = Family(
    name="DiTTransformer2DModel",
    call=_call,
    conditioning=_conditioning,
    block_types=(BasicTransformerBlock,),
)
