"""What do Stable Diffusion 1.5 and SDXL look like on disk, without a download? Their UNets at full size.

The UNet has the published configuration and seeded random weights. Everything else is structure only: text encoders
of two layers with the published widths, tokenizers of some hundred entries, a VAE that shrinks by 8. Weights are
written shard by shard: making the folder takes 2 GB of memory, whatever the model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, PNDMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from gacq_deploy.storage.files import write_json
from tests.support.models.pipelines import SD_BETAS
from tests.support.models.tiny import random_model
from tests.support.models.tiny_text import clip_encoder, clip_tokenizer

SD15: dict[str, Any] = {
    "sample_size": 64, "in_channels": 4, "out_channels": 4, "layers_per_block": 2, "cross_attention_dim": 768,
    "block_out_channels": (320, 640, 1280, 1280), "attention_head_dim": 8, "norm_num_groups": 32,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip
SDXL: dict[str, Any] = {
    "sample_size": 128, "in_channels": 4, "out_channels": 4, "layers_per_block": 2, "cross_attention_dim": 2048,
    "block_out_channels": (320, 640, 1280), "attention_head_dim": (5, 10, 20), "norm_num_groups": 32,
    "transformer_layers_per_block": (1, 2, 10), "use_linear_projection": True,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
SHARD = 2 * 2**30
VAE: dict[str, Any] = {
    "latent_channels": 4,
    "block_out_channels": (16, 32, 32, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "norm_num_groups": 8,
    "sample_size": 32,
}


def make_sd15(folder: Path, **unet: Any) -> Path:
    """Write a ``StableDiffusionPipeline`` (3.4 GB); return its folder."""
    clip_encoder(CLIPTextModel, 768, seed=2).save_pretrained(folder / "text_encoder")
    clip_tokenizer(folder / "tokenizer")
    PNDMScheduler(**SD_BETAS, skip_prk_steps=True, steps_offset=1).save_pretrained(folder / "scheduler")
    random_model(AutoencoderKL, VAE, 1).save_pretrained(folder / "vae")
    write_unet(folder / "unet", SD15 | unet)
    return _write_index(
        folder,
        "StableDiffusionPipeline",
        {
            "feature_extractor": (None, None),
            "image_encoder": (None, None),
            "requires_safety_checker": False,
            "safety_checker": (None, None),
            "scheduler": ("diffusers", "PNDMScheduler"),
            "text_encoder": ("transformers", "CLIPTextModel"),
            "tokenizer": ("transformers", "CLIPTokenizer"),
        },
    )


def make_sdxl(folder: Path, **unet: Any) -> Path:
    """Write a ``StableDiffusionXLPipeline`` (10.3 GB); return its folder."""
    clip_encoder(CLIPTextModel, 768, seed=2).save_pretrained(folder / "text_encoder")
    clip_encoder(CLIPTextModelWithProjection, 1280, seed=3).save_pretrained(folder / "text_encoder_2")
    clip_tokenizer(folder / "tokenizer")
    clip_tokenizer(folder / "tokenizer_2", padding="!")
    EulerDiscreteScheduler(**SD_BETAS, steps_offset=1, timestep_spacing="leading").save_pretrained(
        folder / "scheduler"
    )
    random_model(AutoencoderKL, VAE | {"scaling_factor": 0.13025}, 1).save_pretrained(folder / "vae")
    write_unet(folder / "unet", SDXL | unet)
    return _write_index(
        folder,
        "StableDiffusionXLPipeline",
        {
            "feature_extractor": (None, None),
            "force_zeros_for_empty_prompt": True,
            "image_encoder": (None, None),
            "scheduler": ("diffusers", "EulerDiscreteScheduler"),
            "text_encoder": ("transformers", "CLIPTextModel"),
            "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
            "tokenizer": ("transformers", "CLIPTokenizer"),
            "tokenizer_2": ("transformers", "CLIPTokenizer"),
        },
    )


def _write_index(folder: Path, name: str, components: dict[str, Any]) -> Path:
    both = {"unet": ("diffusers", "UNet2DConditionModel"), "vae": ("diffusers", "AutoencoderKL")}
    head = {"_class_name": name, "_diffusers_version": diffusers.__version__}
    write_json(folder / "model_index.json", head | components | both)
    return folder


def write_unet(folder: Path, config: dict[str, Any]) -> None:
    """Write configuration and seeded random float32 weights, in shards as diffusers splits them."""
    folder.mkdir(parents=True)
    with torch.device("meta"):
        module = UNet2DConditionModel(**config)
    module.save_config(folder)
    groups = list(_grouped(module, SHARD))
    weight_map: dict[str, str] = {}
    generator = torch.Generator().manual_seed(0)
    for number, names in enumerate(groups, 1):
        stem = "diffusion_pytorch_model"
        name = (
            f"{stem}-{number:05d}-of-{len(groups):05d}.safetensors"
            if len(groups) > 1
            else f"{stem}.safetensors"
        )
        save_file({n: _random(n, module.get_parameter(n).shape, generator) for n in names}, folder / name)
        weight_map |= dict.fromkeys(names, name)
    if len(groups) > 1:
        total = sum(4 * p.numel() for p in module.parameters())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def _grouped(module: nn.Module, shard: int) -> Iterator[list[str]]:
    names: list[str] = []
    held = 0
    for name, parameter in module.named_parameters():
        size = 4 * parameter.numel()
        if names and held + size > shard:
            yield names
            names, held = [], 0
        names.append(name)
        held += size
    yield names


def _random(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Return weights that keep their input's size, norms about 1, biases about 0."""
    value = torch.randn(shape, generator=generator)
    if len(shape) > 1:
        return value.mul_(shape[1:].numel() ** -0.5)
    return value.mul_(0.1).add_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
