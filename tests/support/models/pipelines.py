"""Small pipelines of every family with random weights: structure only, their images mean nothing.

Each maker writes one folder as a download looks (model_index.json, scheduler/, tokenizer*/, text_encoder*/, unet/ or
transformer/, vae/; safetensors) with the scheduler and the options of the published model. Nothing is fetched.
"""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    HunyuanDiT2DModel,
    HunyuanDiTPipeline,
    LDMPipeline,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    UMT5Config,
    UMT5EncoderModel,
)

from gacq_deploy.storage.files import write_json
from tests.support.models.architectures import DIT, SD_UNET, SDXL_UNET
from tests.support.models.tiny import random_model
from tests.support.models.tiny_text import (
    TEXT,
    bert_encoder,
    bert_tokenizer,
    clip_encoder,
    clip_tokenizer,
    t5_encoder,
    t5_tokenizer,
    text_model,
)

SD_BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
UNCONDITIONAL_UNET: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 1,
    "block_out_channels": (32, 64),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 8,
    "attention_head_dim": 8,
}
PIXART: dict[str, Any] = {
    "sample_size": 16,
    "num_attention_heads": 4,
    "attention_head_dim": 24,  # as 72 there: a multiple of 8, and the width one of 3 for three sizes side by side
    "num_layers": 2,
    "cross_attention_dim": 96,
    "caption_channels": 32,
    "norm_type": "ada_norm_single",
}
"""PixArt: one shared adaLN ("single") with a table in each block, cross attention, a learned variance."""
SD3: dict[str, Any] = {
    "sample_size": 16,
    "num_layers": 2,
    "num_attention_heads": 4,
    "attention_head_dim": 16,
    "joint_attention_dim": 64,
    "caption_projection_dim": 64,
    "pooled_projection_dim": 64,
    "pos_embed_max_size": 24,
}
"""Stable Diffusion 3: text and image attend together; the last block keeps the image only."""
SD35: dict[str, Any] = SD3 | {"qk_norm": "rms_norm", "dual_attention_layers": (0,)}
"""Stable Diffusion 3.5 medium: besides, norms on q and k, and a second attention in the first blocks."""
FLUX: dict[str, Any] = {
    "in_channels": 64,
    "num_layers": 2,
    "num_single_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 32,
    "axes_dims_rope": (8, 12, 12),
    "joint_attention_dim": 32,
    "pooled_projection_dim": 32,
}
"""Flux: 16 latent channels packed 2x2 into tokens, double and single blocks, rotary positions from ids."""
HUNYUAN: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 4,
    "patch_size": 2,
    "num_layers": 4,
    "num_attention_heads": 4,
    "attention_head_dim": 16,
    "hidden_size": 64,
    "cross_attention_dim": 32,
    "cross_attention_dim_t5": 32,
    "pooled_projection_dim": 32,
    "text_len": 77,
    "text_len_t5": 256,
}
"""HunyuanDiT: two texts, each with a mask, rotary positions as tensors, skips between halves, a learned variance."""
AURA_FLOW: dict[str, Any] = {
    "sample_size": 16,
    "num_mmdit_layers": 2,
    "num_single_dit_layers": 2,
    "num_attention_heads": 4,
    "attention_head_dim": 16,
    "joint_attention_dim": 32,
    "caption_projection_dim": 64,
    "pos_embed_max_size": 256,
}
"""AuraFlow: no biases, register tokens, timesteps between 0 and 1."""


def make_stable_diffusion(
    folder: Path, *, safety_checker: bool = True, prediction_type: str = "epsilon", **unet: Any
) -> Path:
    """Stable Diffusion 1; with ``v_prediction`` and ``use_linear_projection`` it is Stable Diffusion 2."""
    return _save(
        StableDiffusionPipeline(
            vae=_vae(4),
            text_encoder=clip_encoder(CLIPTextModel, 48, seed=2),
            tokenizer=clip_tokenizer(folder / "tokenizer"),
            unet=_denoiser(UNet2DConditionModel, SD_UNET | unet),
            scheduler=PNDMScheduler(
                **SD_BETAS, skip_prk_steps=True, steps_offset=1, prediction_type=prediction_type
            ),
            safety_checker=_safety_checker() if safety_checker else None,
            feature_extractor=CLIPImageProcessorPil() if safety_checker else None,
            requires_safety_checker=safety_checker,
        ),
        folder,
    )


def make_stable_diffusion_xl(folder: Path, **unet: Any) -> Path:
    """SDXL: two text encoders side by side, the pooled answer of the second, time ids."""
    return _save(
        StableDiffusionXLPipeline(
            vae=_vae(4, scaling_factor=0.13025),
            text_encoder=clip_encoder(CLIPTextModel, 16, seed=2),
            text_encoder_2=clip_encoder(CLIPTextModelWithProjection, 32, seed=3),
            tokenizer=clip_tokenizer(folder / "tokenizer"),
            tokenizer_2=clip_tokenizer(folder / "tokenizer_2", padding="!"),
            unet=_denoiser(UNet2DConditionModel, SDXL_UNET | unet),
            scheduler=EulerDiscreteScheduler(**SD_BETAS, steps_offset=1, timestep_spacing="leading"),
        ),
        folder,
    )


def make_dit(folder: Path, **transformer: Any) -> Path:
    """DiT: class labels, of which the last is no class."""
    config = DIT | {"num_embeds_ada_norm": 1000} | transformer  # the pipeline's null class is 1000
    _save(
        DiTPipeline(
            transformer=_denoiser(DiTTransformer2DModel, config),
            vae=_vae(4),
            scheduler=DDIMScheduler(clip_sample=False),
        ),
        folder,
    )
    index = folder / "model_index.json"
    labels = {"id2label": {"0": "tench", "1": "goldfish", "2": "great white shark"}}
    write_json(
        index, json.loads(index.read_text(encoding="utf-8")) | labels
    )  # published, but not saved again
    return folder


def make_pixart_alpha(folder: Path, **transformer: Any) -> Path:
    """PixArt-alpha at 512; with ``sample_size`` 128, as at 1024, size and aspect ratio condition it too."""
    return _make_pixart(PixArtAlphaPipeline, folder, PIXART | transformer)


def make_pixart_sigma(folder: Path, **transformer: Any) -> Path:
    """PixArt-Sigma: a longer text and SDXL's scale of latents."""
    config = PIXART | {"interpolation_scale": 2, "use_additional_conditions": False} | transformer
    return _make_pixart(PixArtSigmaPipeline, folder, config)


def _make_pixart(kind: Any, folder: Path, config: dict[str, Any]) -> Path:
    return _save(
        kind(
            tokenizer=t5_tokenizer(folder / "tokenizer"),
            text_encoder=t5_encoder(32, seed=2),
            vae=_vae(4, scaling_factor=0.13025 if kind is PixArtSigmaPipeline else 0.18215),
            transformer=_denoiser(PixArtTransformer2DModel, config),
            scheduler=DPMSolverMultistepScheduler(),
        ),
        folder,
    )


def make_stable_diffusion_3(folder: Path, **transformer: Any) -> Path:
    """Stable Diffusion 3: two CLIPs, padded to the width of T5, and T5 behind them."""
    return _save(
        StableDiffusion3Pipeline(
            transformer=_denoiser(SD3Transformer2DModel, SD3 | transformer),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=_flow_vae(scaling_factor=1.5305, shift_factor=0.0609),
            text_encoder=clip_encoder(CLIPTextModelWithProjection, 32, seed=2),
            tokenizer=clip_tokenizer(folder / "tokenizer"),
            text_encoder_2=clip_encoder(CLIPTextModelWithProjection, 32, seed=3),
            tokenizer_2=clip_tokenizer(folder / "tokenizer_2", padding="!"),
            text_encoder_3=t5_encoder(64, seed=4),
            tokenizer_3=t5_tokenizer(folder / "tokenizer_3"),
        ),
        folder,
    )


def make_flux(folder: Path, *, guidance_embeds: bool = True, **transformer: Any) -> Path:
    """Flux "dev", distilled with an embedded guidance, or "schnell", without it and without shifted times."""
    shifts = {"shift": 3.0, "use_dynamic_shifting": True} if guidance_embeds else {"shift": 1.0}
    config = FLUX | {"guidance_embeds": guidance_embeds} | transformer
    return _save(
        FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(**shifts),
            vae=_flow_vae(scaling_factor=0.3611, shift_factor=0.1159),
            text_encoder=clip_encoder(CLIPTextModel, 32, seed=2),
            tokenizer=clip_tokenizer(folder / "tokenizer"),
            text_encoder_2=t5_encoder(32, seed=3),
            tokenizer_2=t5_tokenizer(folder / "tokenizer_2"),
            transformer=_denoiser(FluxTransformer2DModel, config),
        ),
        folder,
    )


def make_ddpm(folder: Path, **unet: Any) -> Path:
    """DDPM in pixels."""
    model = _denoiser(UNet2DModel, UNCONDITIONAL_UNET | unet)
    return _save(DDPMPipeline(model, DDPMScheduler(variance_type="fixed_large")), folder)


def make_ddim(folder: Path, **unet: Any) -> Path:
    """DDIM in pixels."""
    model = _denoiser(UNet2DModel, UNCONDITIONAL_UNET | unet)
    return _save(DDIMPipeline(model, DDIMScheduler()), folder)


def make_ldm(folder: Path, **unet: Any) -> Path:
    """Unconditional latent diffusion: the decoder is the component ``vqvae``."""
    config = {
        "block_out_channels": (16, 32),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "norm_num_groups": 8,
    }
    vqvae = random_model(VQModel, config, 1)
    vqvae.quantize.embedding.weight.mul_(512)  # entries start near 0, where every latent finds the same one
    return _save(
        LDMPipeline(
            vqvae=vqvae,
            unet=_denoiser(UNet2DModel, UNCONDITIONAL_UNET | unet),
            scheduler=DDIMScheduler(
                beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear", clip_sample=False
            ),
        ),
        folder,
    )


def make_hunyuan_dit(folder: Path, **transformer: Any) -> Path:
    """HunyuanDiT: BERT and T5 with their masks."""
    return _save(
        HunyuanDiTPipeline(
            vae=_vae(4, levels=4, scaling_factor=0.13025),  # the pipeline counts on a factor of 8
            text_encoder=bert_encoder(seed=2),
            tokenizer=bert_tokenizer(folder / "tokenizer"),
            transformer=_denoiser(HunyuanDiT2DModel, HUNYUAN | transformer),
            scheduler=DDPMScheduler(
                **SD_BETAS | {"beta_end": 0.03},
                clip_sample=False,
                steps_offset=1,
                prediction_type="v_prediction",
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
            text_encoder_2=t5_encoder(32, seed=3),
            tokenizer_2=t5_tokenizer(folder / "tokenizer_2"),
        ),
        folder,
    )


def make_aura_flow(folder: Path, **transformer: Any) -> Path:
    """AuraFlow: a flow model with one text encoder."""
    return _save(
        AuraFlowPipeline(
            tokenizer=t5_tokenizer(folder / "tokenizer"),
            text_encoder=t5_encoder(32, UMT5EncoderModel, UMT5Config, seed=2),
            vae=_vae(4, scaling_factor=0.13025),
            transformer=_denoiser(AuraFlowTransformer2DModel, AURA_FLOW | transformer),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
        ),
        folder,
    )


PIPELINES: dict[str, Callable[[Path], Path]] = {
    "sd": make_stable_diffusion,
    "sd-unchecked": partial(make_stable_diffusion, safety_checker=False),
    "sd2-v": partial(
        make_stable_diffusion,
        safety_checker=False,
        prediction_type="v_prediction",
        use_linear_projection=True,
    ),
    "sdxl": make_stable_diffusion_xl,
    "dit": make_dit,
    "pixart-alpha": make_pixart_alpha,
    "pixart-alpha-1024": partial(make_pixart_alpha, sample_size=128),
    "pixart-sigma": make_pixart_sigma,
    "sd3": make_stable_diffusion_3,
    "sd3.5": partial(make_stable_diffusion_3, **SD35),
    "flux-dev": make_flux,
    "flux-schnell": partial(make_flux, guidance_embeds=False),
    "ddpm": make_ddpm,
    "ddim": make_ddim,
    "ldm": make_ldm,
    "hunyuan-dit": make_hunyuan_dit,
    "aura-flow": make_aura_flow,
}
"""Name -> what writes the pipeline. A maker's keywords change the denoiser's configuration."""

_SMALL_CALL: dict[str, Any] = {
    "use_resolution_binning": False,  # the bins are of 256 to 1024 pixels
    "clean_caption": False,  # needs two more packages
}


def call_arguments(pipeline: Any, *, rows: int = 2, steps: int = 3) -> dict[str, Any]:
    """Return keywords with which any pipeline of the table makes ``rows`` images from latents of 16x16 at most."""
    known = inspect.signature(pipeline.__call__).parameters
    if "prompt" in known:
        asked: dict[str, Any] = {"prompt": [TEXT[row % len(TEXT)] for row in range(rows)]}
    elif "class_labels" in known:
        asked = {"class_labels": list(range(rows))}
    else:
        asked = {"batch_size": rows}
    size = 16 * getattr(pipeline, "vae_scale_factor", 1)
    small = {"height": size, "width": size} | _SMALL_CALL
    return (
        asked
        | {name: value for name, value in small.items() if name in known}
        | {"num_inference_steps": steps}
    )


def _save(pipeline: DiffusionPipeline, folder: Path) -> Path:
    """Write all but the tokenizers, whose published files are there: the library would write its newer form."""
    published = folder / "published"
    for path in sorted(folder.glob("tokenizer*")):
        shutil.move(path, published / path.name)
    pipeline.save_pretrained(folder)
    for path in published.glob("*"):
        shutil.rmtree(folder / path.name)
        path.rename(folder / path.name)
    if published.exists():
        published.rmdir()
    return folder


def _denoiser(kind: type[nn.Module], config: dict[str, Any]) -> Any:
    module = random_model(kind, config, 0)
    for weight in module.parameters():
        if weight.ndim > 1:  # as initialized every layer shrinks its input: a prompt would hardly matter
            weight.mul_(3**0.5)
    return module


def _vae(channels: int, *, levels: int = 2, **changes: Any) -> AutoencoderKL:
    config = {
        "latent_channels": channels,
        "block_out_channels": (16, *[32] * (levels - 1)),
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "norm_num_groups": 8,
        "sample_size": 32,
    }
    return random_model(AutoencoderKL, config | changes, 1)


def _flow_vae(**factors: float) -> AutoencoderKL:
    return _vae(16, use_quant_conv=False, use_post_quant_conv=False, **factors)


def _safety_checker() -> StableDiffusionSafetyChecker:
    layers = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "projection_dim": 32,
    }
    text = layers | {"vocab_size": 8, "bos_token_id": 0, "eos_token_id": 1}
    vision = layers | {"image_size": 224, "patch_size": 32}
    checker = text_model(
        StableDiffusionSafetyChecker,
        CLIPConfig,
        5,
        text_config=text,
        vision_config=vision,
        projection_dim=32,
    )
    for number, concepts in enumerate((checker.concept_embeds, checker.special_care_embeds)):
        concepts.copy_(torch.randn(concepts.shape, generator=torch.Generator().manual_seed(number)))
    return checker
