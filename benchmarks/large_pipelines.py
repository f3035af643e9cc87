"""What do Stable Diffusion 1.5 and SDXL look like on disk, without a download? Their UNets at full size.

The UNet has the published configuration and seeded random weights. Everything else is structure only: text encoders
of two layers with the published widths, tokenizers of some hundred entries, a VAE that shrinks by 8.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
from diffusers import AutoencoderKL, EulerDiscreteScheduler, PNDMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from benchmarks.large_models import SD15, SDXL, write_denoiser
from gacq_deploy.storage.files import write_json
from tests.support.models.pipelines import SD_BETAS
from tests.support.models.tiny import random_model
from tests.support.models.tiny_text import clip_encoder, clip_tokenizer

VAE: dict[str, Any] = {
    "latent_channels": 4,
    "block_out_channels": (16, 32, 32, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "norm_num_groups": 8,
    "sample_size": 32,
}


def make_sd15(folder: Path, *, half: bool = False, **unet: Any) -> Path:
    """Write a ``StableDiffusionPipeline`` (3.4 GB, or half of it); return its folder."""
    clip_encoder(CLIPTextModel, 768, seed=2).save_pretrained(folder / "text_encoder")
    clip_tokenizer(folder / "tokenizer")
    PNDMScheduler(**SD_BETAS, skip_prk_steps=True, steps_offset=1).save_pretrained(folder / "scheduler")
    random_model(AutoencoderKL, VAE, 1).save_pretrained(folder / "vae")
    write_denoiser(folder / "unet", UNet2DConditionModel, SD15 | unet, half=half)
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


def make_sdxl(folder: Path, *, half: bool = False, **unet: Any) -> Path:
    """Write a ``StableDiffusionXLPipeline`` (10.3 GB, or half of it); return its folder."""
    clip_encoder(CLIPTextModel, 768, seed=2).save_pretrained(folder / "text_encoder")
    clip_encoder(CLIPTextModelWithProjection, 1280, seed=3).save_pretrained(folder / "text_encoder_2")
    clip_tokenizer(folder / "tokenizer")
    clip_tokenizer(folder / "tokenizer_2", padding="!")
    EulerDiscreteScheduler(**SD_BETAS, steps_offset=1, timestep_spacing="leading").save_pretrained(
        folder / "scheduler"
    )
    random_model(AutoencoderKL, VAE | {"scaling_factor": 0.13025}, 1).save_pretrained(folder / "vae")
    write_denoiser(folder / "unet", UNet2DConditionModel, SDXL | unet, half=half)
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
