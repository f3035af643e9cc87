"""How is diffusers' UNet2DConditionModel called? With text, as Stable Diffusion 1 and 2 and SDXL are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from gacq_deploy.errors import ModelError
from gacq_deploy.models.base import Conditioning, Family
from gacq_deploy.models.unet2d import halvings

TEXT = "encoder_hidden_states"
TEXT_TOKENS = 77
"""Length of a CLIP prompt, padded; the model's configuration does not tell it."""
TIME_IDS = 6
"""SDXL: original height and width, crop from top and left, target height and width."""
_ADDED = ("text_embeds", "time_ids")
# what would need further inputs or another call; each is off at this value
_UNSUPPORTED = {
    "class_embed_type": None,
    "num_class_embeds": None,
    "encoder_hid_dim_type": None,
    "encoder_hid_dim": None,
    "time_cond_proj_dim": None,
    "attention_type": "default",
}
_SUPPORTED = (
    "Supported: text conditioning alone, or with pooled text and time ids (addition_embed_type: text_time)."
)


def _call(module: nn.Module, sample: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
    added = {name: conditioning[name] for name in _ADDED if name in conditioning}
    output: Tensor = module(
        sample, timestep, conditioning[TEXT], added_cond_kwargs=added or None, return_dict=False
    )[0]
    return output


def _conditioning(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    for key, off in _UNSUPPORTED.items():
        if config.get(key, off) != off:
            raise ModelError(f"UNet2DConditionModel with {key}={config[key]!r} is not supported.", _SUPPORTED)
    taken, made = config.get("in_channels", 4), config.get("out_channels", 4)
    if taken != made:
        raise ModelError(
            f"UNet2DConditionModel takes {taken} channels and predicts {made}: inpainting and upscaling models are "
            "not supported.",
            _SUPPORTED,
        )
    width = config.get("cross_attention_dim", 1280)
    if not isinstance(width, int):
        raise ModelError(
            f"UNet2DConditionModel with cross_attention_dim={width!r} is not supported.", _SUPPORTED
        )
    described = {TEXT: _floats(TEXT_TOKENS, width)}
    match config.get("addition_embed_type"):
        case None:
            return described
        case "text_time":
            time_width = TIME_IDS * int(config["addition_time_embed_dim"])
            pooled = int(config["projection_class_embeddings_input_dim"]) - time_width
            return described | {"text_embeds": _floats(pooled), "time_ids": _floats(TIME_IDS)}
        case other:
            raise ModelError(
                f"UNet2DConditionModel with addition_embed_type={other!r} is not supported.", _SUPPORTED
            )


def _floats(*shape: int) -> dict[str, Any]:
    return {"dtype": "float32", "shape": list(shape)}


UNET2D_CONDITION = Family(
    name="UNet2DConditionModel",
    call=_call,
    conditioning=_conditioning,
    block_types=(ResnetBlock2D, BasicTransformerBlock, Attention, Downsample2D, Upsample2D),
    size_multiple=halvings,
)
