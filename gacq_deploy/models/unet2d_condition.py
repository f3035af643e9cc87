"""How is diffusers' UNet2DConditionModel called? With text, as Stable Diffusion 1 and 2 and SDXL are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gacq_deploy.artifact.call import ArgumentRecord, CallRecord, Place, StateRecord
from gacq_deploy.errors import ModelError
from gacq_deploy.models.base import Family
from gacq_deploy.models.unet2d import halvings

TEXT = "encoder_hidden_states"
TEXT_TOKENS = 77
"""Length of a CLIP prompt, padded; the model's configuration does not tell it."""
TIME_IDS = 6
"""SDXL: original height and width, crop from top and left, target height and width."""
_ADDED = "added_cond_kwargs"
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


def _describe(config: Mapping[str, Any], shape: tuple[int, ...]) -> CallRecord:
    for key, off in _UNSUPPORTED.items():
        if config.get(key, off) != off:
            raise ModelError(f"UNet2DConditionModel with {key}={config[key]!r} is not supported.", _SUPPORTED)
    # 4 channels and a width of 1280 are diffusers' own defaults
    taken, made = config.get("in_channels", 4), config.get("out_channels", 4)
    if taken != made:
        raise ModelError(
            f"UNet2DConditionModel takes {taken} channels and predicts {made} (in_channels, out_channels): inpainting "
            "and upscaling models are not supported.",
            _SUPPORTED,
        )
    width = config.get("cross_attention_dim", 1280)
    if not isinstance(width, int):
        raise ModelError(
            f"UNet2DConditionModel with cross_attention_dim={width!r} is not supported.", _SUPPORTED
        )
    text = _floats((TEXT,), TEXT_TOKENS, width)
    match config.get("addition_embed_type"):
        case None:
            arguments: tuple[ArgumentRecord, ...] = (text,)
        case "text_time":
            time_width = TIME_IDS * int(config["addition_time_embed_dim"])
            pooled = int(config["projection_class_embeddings_input_dim"]) - time_width
            added = (_floats((_ADDED, "text_embeds"), pooled), _floats((_ADDED, "time_ids"), TIME_IDS))
            arguments = (text, *added)
        case other:
            raise ModelError(
                f"UNet2DConditionModel with addition_embed_type={other!r} is not supported.", _SUPPORTED
            )
    return CallRecord(state=StateRecord(shape=shape), arguments=arguments, constants={"return_dict": False})


def _floats(path: Place, *shape: int) -> ArgumentRecord:
    return ArgumentRecord(name=str(path[-1]), path=path, dtype="float32", shape=shape)


UNET2D_CONDITION = Family(
    name="UNet2DConditionModel",
    describe=_describe,
    size_multiple=halvings,
)
