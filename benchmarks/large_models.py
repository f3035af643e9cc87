"""Which configurations do large denoisers have, and how do they reach the disk without a download?

Weights are random, seeded, and written one after the other: writing takes the memory of the largest.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from torch import Tensor

from gacq_deploy.artifact.call import ArgumentRecord, CallRecord, DType, Place, StateRecord, TimestepRecord
from gacq_deploy.models.half_storage import without_weights
from gacq_deploy.spec import Array
from gacq_deploy.storage.arrays import array_header
from gacq_deploy.storage.files import atomic_path, write_json

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
SD3_MEDIUM: dict[str, Any] = {
    "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 24,
    "attention_head_dim": 64, "num_attention_heads": 24, "joint_attention_dim": 4096,
    "caption_projection_dim": 1536, "pooled_projection_dim": 2048, "pos_embed_max_size": 192,
}  # fmt: skip
FLUX1: dict[str, Any] = {
    "patch_size": 1, "in_channels": 64, "num_layers": 19, "num_single_layers": 38, "attention_head_dim": 128,
    "num_attention_heads": 24, "joint_attention_dim": 4096, "pooled_projection_dim": 768, "guidance_embeds": True,
    "axes_dims_rope": (16, 56, 56),
}  # fmt: skip
MIDDLE: dict[str, Any] = {
    "sample_size": 32, "block_out_channels": (192, 384, 768, 768), "cross_attention_dim": 768,
}  # fmt: skip
"""Shaped as Stable Diffusion 1.5's, of 314 M parameters."""
WIDE: dict[str, Any] = {
    "sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 7, "num_attention_heads": 12,
    "attention_head_dim": 128, "norm_num_groups": 32, "num_embeds_ada_norm": 10,
}  # fmt: skip
"""A DiT of few layers and 300 M parameters: as large as ``MIDDLE``, its graph is small."""
SCALED_LINEAR = {
    "_class_name": "DDIMScheduler", "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012,
    "beta_schedule": "scaled_linear", "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1,
}  # fmt: skip
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
SHARD = 2 * 2**30
"""Bytes of a file of weights, as diffusers splits them."""
_STEM = "diffusion_pytorch_model"


@dataclass(frozen=True)
class LargeModel:
    """A denoiser of published shape: its class, its configuration and the recipe that suits it.

    ``small`` is a state [C, H, W] that needs a fraction of the work and shows the same layers. ``call`` is how its
    pipeline calls it, where the configuration does not tell.
    """

    kind: type[Any]
    config: Mapping[str, Any]
    recipe: str
    scheduler: Mapping[str, Any]
    small: tuple[int, ...]
    call: CallRecord | None = None

    @property
    def component(self) -> str:
        """What its pipeline calls it."""
        return "unet" if self.kind is UNet2DConditionModel else "transformer"


def _argument(name: str, *shape: int, dtype: DType = "float32", shared: bool = False) -> ArgumentRecord:
    path: Place = (name,)
    return ArgumentRecord(name=name, path=path, dtype=dtype, shape=shape, shared=shared)


_SD3_CALL = CallRecord(
    state=StateRecord(path=("hidden_states",), shape=(16, 128, 128)),
    timestep=TimestepRecord(dtype="float32"),
    arguments=(_argument("encoder_hidden_states", 333, 4096), _argument("pooled_projections", 2048)),
    constants={"return_dict": False},
)
_FLUX_CALL = CallRecord(
    state=StateRecord(path=("hidden_states",), shape=(4096, 64)),
    timestep=TimestepRecord(dtype="float32", scale=0.001),
    arguments=(
        _argument("guidance"),
        _argument("pooled_projections", 768),
        _argument("encoder_hidden_states", 512, 4096),
        _argument("txt_ids", 512, 3, shared=True),
        _argument("img_ids", 4096, 3, shared=True),
    ),
    constants={"return_dict": False},
)
MODELS: dict[str, LargeModel] = {
    "middle": LargeModel(UNet2DConditionModel, MIDDLE, "sd15-w8a8", SCALED_LINEAR, (4, 16, 16)),
    "wide": LargeModel(DiTTransformer2DModel, WIDE, "dit-w8a8", SCALED_LINEAR, (4, 8, 8)),
    "sd15": LargeModel(UNet2DConditionModel, SD15, "sd15-w8a8", SCALED_LINEAR, (4, 16, 16)),
    "sdxl": LargeModel(UNet2DConditionModel, SDXL, "sdxl-w8a8", SCALED_LINEAR, (4, 16, 16)),
    "sd3": LargeModel(SD3Transformer2DModel, SD3_MEDIUM, "sd3-w8a8", FLOW, (16, 16, 16), _SD3_CALL),
    "flux": LargeModel(FluxTransformer2DModel, FLUX1, "flux-w8a8", FLOW, (4096, 64), _FLUX_CALL),
}
"""Name -> model; ``middle`` and ``wide`` are none that were published."""


def write_denoiser(folder: Path, kind: type[Any], config: Mapping[str, Any], *, half: bool = False) -> None:
    """Write configuration and seeded random weights, float32 or float16, in shards as diffusers splits them."""
    folder.mkdir(parents=True)
    with without_weights():
        module = kind(**config)
    module.save_config(folder)
    dtype = torch.float16 if half else torch.float32
    tensors = module.state_dict()
    groups = list(_grouped({n: dtype.itemsize * t.numel() for n, t in tensors.items()}, SHARD))
    generator = torch.Generator().manual_seed(0)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(groups, 1):
        part = f"-{number:05d}-of-{len(groups):05d}" if len(groups) > 1 else ""
        file = f"{_STEM}{part}.safetensors"
        _write_shard(folder / file, {n: tensors[n] for n in names}, dtype, generator)
        weight_map |= dict.fromkeys(names, file)
    if len(groups) > 1:
        total = sum(dtype.itemsize * t.numel() for t in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / f"{_STEM}.safetensors.index.json").write_text(json.dumps(index, indent=2))


def write_model(root: Path, model: LargeModel, *, half: bool = False) -> Path:
    """Write a denoiser and its scheduler as a pipeline's folder holds them; return the folder."""
    write_denoiser(root / model.component, model.kind, model.config, half=half)
    write_json(root / "scheduler" / "scheduler_config.json", dict(model.scheduler))
    return root


def _grouped(sizes: Mapping[str, int], shard: int) -> Iterator[list[str]]:
    names: list[str] = []
    held = 0
    for name, size in sizes.items():
        if names and held + size > shard:
            yield names
            names, held = [], 0
        names.append(name)
        held += size
    yield names


def _write_shard(
    path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype, generator: torch.Generator
) -> None:
    name_of_type = str(dtype).removeprefix("torch.")
    layout = {name: (name_of_type, tuple(t.shape)) for name, t in tensors.items()}
    head, size = array_header(layout, schema="random weights")
    with atomic_path(path, len(head) + size) as temp, temp.open("wb") as file:
        file.write(head)
        for name, tensor in tensors.items():
            # a buffer that is stored, positions for instance, is computed and not learned
            value = tensor if not tensor.is_meta else _random(name, tensor.shape, generator)
            file.write(_bytes(value.to(dtype).numpy()))


def _bytes(array: Array) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _random(name: str, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Return weights that keep their input's size, norms about 1, biases about 0."""
    value = torch.randn(tuple(shape), generator=generator)
    if len(shape) > 1:
        return value.mul_(math.prod(shape[1:]) ** -0.5)
    return value.mul_(0.1).add_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
