"""What do configurations of small models of several classes hold?"""

from __future__ import annotations

from typing import Any

from diffusers import DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel

from tests.support.models.tiny import UNET_CONFIG, WITHOUT_ATTENTION

MODELS: dict[type[Any], dict[str, Any]] = {
    UNet2DModel: UNET_CONFIG | WITHOUT_ATTENTION | {"num_class_embeds": 4},
    UNet2DConditionModel: {
        "sample_size": 8,
        "layers_per_block": 1,
        "block_out_channels": (8,),
        "down_block_types": ("CrossAttnDownBlock2D",),
        "up_block_types": ("CrossAttnUpBlock2D",),
        "norm_num_groups": 4,
        "attention_head_dim": 4,
        "cross_attention_dim": 16,
    },
    DiTTransformer2DModel: {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "out_channels": 8,
        "num_layers": 1,
        "sample_size": 8,
        "num_embeds_ada_norm": 4,
    },
}
