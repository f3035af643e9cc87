"""A tiny UNet of one resolution with few quantized layers, for tests that learn again and again: the time goes by the
layer."""

from __future__ import annotations

from typing import Any

ONE_LEVEL: dict[str, Any] = {
    "block_out_channels": (8,),
    "down_block_types": ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",),
}
"""Changes of the tiny UNet: attention stands in the middle only. 16 layers instead of 39 can be quantized."""
MIDDLE = (
    "quantization.rules=[{match: '*', ignore: true}, {match: 'mid_block.*', bits: 8}, "
    "{match: 'mid_block.*', role: weight, bits: 4}, {match: '*time_emb*', ignore: true}]"
)
"""Three blocks: a resnet, attention whose queries, keys and values share their input, and a resnet."""
