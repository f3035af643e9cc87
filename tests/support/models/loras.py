"""Small LoRAs with random weights for the small pipelines, in the file that training scripts leave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
LORA_FILE = "pytorch_lora_weights.safetensors"


def make_lora(
    source: Path,
    folder: Path,
    *,
    rank: int = 4,
    alpha: int = 8,
    targets: tuple[str, ...] = ATTENTION,
    text_encoder: bool = False,
    seed: int = 0,
) -> Path:
    """Write a LoRA for the denoiser of the pipeline in ``source``, if asked for its text encoder too.

    Args:
        source: folder of a pipeline whose class can hold LoRAs.
        folder: where the file goes.
        rank: of every pair of factors.
        alpha: the factors' product counts ``alpha / rank`` times.
        targets: ends of the names of the denoiser's layers.
        text_encoder: whether the pipeline's first text encoder has one too.
        seed: of the weights.

    Returns:
        The file.
    """
    pipeline: Any = DiffusionPipeline.from_pretrained(source)
    denoiser = "transformer" if "transformer" in pipeline.components else "unet"
    wanted = {denoiser: targets} | ({"text_encoder": TEXT_ATTENTION} if text_encoder else {})
    noise = torch.Generator().manual_seed(seed)
    layers = {}
    for part, names in wanted.items():
        module = getattr(pipeline, part)
        module.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(names)))
        weights = get_peft_model_state_dict(module)
        if denoiser == "unet":  # there the scripts write the older names
            weights = convert_state_dict_to_diffusers(weights)
        # an untrained one changes nothing: its second factors are 0
        layers[f"{part}_lora_layers"] = {
            name: 0.2 * torch.randn(weight.shape, generator=noise) for name, weight in weights.items()
        }
    metadata = _collate_lora_metadata({part: getattr(pipeline, part) for part in wanted})
    pipeline.save_lora_weights(folder, **layers, **metadata)
    return folder / LORA_FILE
