"""Small random-weight denoisers with the structure of Stable Diffusion 1, SDXL and DiT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import DiTTransformer2DModel, UNet2DConditionModel
from torch import nn

from gacq_deploy.models.base import Denoiser
from gacq_deploy.storage.files import write_json
from tests.support.models.tiny import denoiser_of, random_model

SD_UNET: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 1,
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 48,
    "attention_head_dim": 4,
    "norm_num_groups": 8,
}
"""Stable Diffusion 1: convolutional projections around GEGLU transformer blocks; as there, the number of heads."""
SDXL_UNET: dict[str, Any] = SD_UNET | {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 16,
    "projection_class_embeddings_input_dim": 6 * 16 + 32,
}
"""SDXL: linear projections, two transformer blocks in a row, pooled text and time ids."""
DIT: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 8,
    "num_attention_heads": 4,
    "attention_head_dim": 16,
    "num_layers": 2,
    "patch_size": 2,
    "num_embeds_ada_norm": 10,
}
"""DiT: patches, adaLN-Zero, a learned variance."""


def small_sd_unet(*, seed: int = 0, **changes: Any) -> Denoiser:
    """Return a text-conditioned UNet of some 0.6 M random weights."""
    return _denoiser(UNet2DConditionModel, SD_UNET | changes, seed)


def small_sdxl_unet(*, seed: int = 0, **changes: Any) -> Denoiser:
    """Return a UNet with SDXL's conditioning and random weights, on its way up without attention: what is there too."""
    plain = {"up_block_types": ("UpBlock2D", "UpBlock2D")}
    return _denoiser(UNet2DConditionModel, SDXL_UNET | plain | changes, seed)


def small_dit(*, seed: int = 0, **changes: Any) -> Denoiser:
    """Return a class-conditional DiT of random weights."""
    return _denoiser(DiTTransformer2DModel, DIT | changes, seed)


def _denoiser(kind: type[nn.Module], config: dict[str, Any], seed: int) -> Denoiser:
    return denoiser_of(random_model(kind, config, seed), source="random")


def save_pipeline(denoiser: Denoiser, folder: Path) -> Path:
    """Write the model as a pipeline holds it, with its scheduler; return the folder."""
    module: Any = denoiser.module
    module.save_pretrained(folder / ("transformer" if "Transformer" in denoiser.family.name else "unet"))
    write_json(folder / "scheduler" / "scheduler_config.json", denoiser.record.scheduler)
    return folder
