"""Tiny random denoisers with the structure of SD3, Flux, PixArt, Sana and AuraFlow, called as their pipelines do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    AuraFlowTransformer2DModel,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
)
from torch import Tensor, nn

from gacq_deploy.artifact.records import ModelRecord
from gacq_deploy.models.base import Conditioning, Denoiser
from gacq_deploy.models.source import FAMILIES, digest_weights
from tests.support.models.tiny import SCHEDULER, random_model

Call = Callable[[nn.Module, Tensor, Tensor, Conditioning], Tensor]
TOKENS, TEXT, POOLED = 5, 24, 16
SD3: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 3,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "joint_attention_dim": TEXT,
    "caption_projection_dim": 32,
    "pooled_projection_dim": POOLED,
    "pos_embed_max_size": 8,
    "dual_attention_layers": (0,),
    "qk_norm": "rms_norm",
}
FLUX: dict[str, Any] = {
    "in_channels": 4,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": TEXT,
    "pooled_projection_dim": POOLED,
    "axes_dims_rope": (4, 4, 8),
}
PIXART: dict[str, Any] = {
    "sample_size": 8,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_layers": 2,
    "cross_attention_dim": 16,
    "caption_channels": TEXT,
    "use_additional_conditions": False,
}
SANA: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_layers": 2,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 8,
    "cross_attention_dim": 16,
    "caption_channels": TEXT,
}
AURAFLOW: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "num_mmdit_layers": 1,
    "num_single_dit_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "joint_attention_dim": TEXT,
    "caption_projection_dim": 32,
    "pos_embed_max_size": 16,
}


def _text_then_pooled(module: nn.Module, sample: Tensor, timestep: Tensor, given: Conditioning) -> Tensor:
    output: Tensor = module(
        sample, given["text"], pooled_projections=given["pooled"], timestep=timestep, return_dict=False
    )[0]
    return output


def _packed(module: nn.Module, sample: Tensor, timestep: Tensor, given: Conditioning) -> Tensor:
    """Flux reads pixels as a sequence, with their places, the same for all rows, beside it."""
    rows, channels, height, width = sample.shape
    output: Tensor = module(
        sample.flatten(2).transpose(1, 2),
        given["text"],
        given["pooled"],
        timestep=timestep / 1000,
        img_ids=given["places"][0],
        txt_ids=torch.zeros(given["text"].shape[1], 3),
        return_dict=False,
    )[0]
    return output.transpose(1, 2).reshape(rows, channels, height, width)


def _text(module: nn.Module, sample: Tensor, timestep: Tensor, given: Conditioning) -> Tensor:
    output: Tensor = module(
        sample, encoder_hidden_states=given["text"], timestep=timestep, return_dict=False
    )[0]
    return output


def _pixart(module: nn.Module, sample: Tensor, timestep: Tensor, given: Conditioning) -> Tensor:
    added = {"resolution": None, "aspect_ratio": None}
    output: Tensor = module(sample, given["text"], timestep, added, return_dict=False)[0]
    return output.chunk(2, dim=1)[0]


class _Called(nn.Module):
    """What exporters take: positional inputs, the network itself as the attribute ``denoiser``."""

    def __init__(self, wrapped: WrappedDenoiser) -> None:
        super().__init__()
        self.denoiser = wrapped.module
        self._function, self._names = wrapped.function, tuple(wrapped.shapes)

    def forward(self, sample: Tensor, timestep: Tensor, *conditioning: Tensor) -> Tensor:
        given = dict(zip(self._names, conditioning, strict=True))
        return self._function(self.denoiser, sample, timestep, given)


@dataclass(frozen=True)
class WrappedDenoiser(Denoiser):
    """A module that is called by a function of the test's own; ``shared`` inputs are one for all rows."""

    function: Call
    shapes: Mapping[str, tuple[int, ...]]
    shared: frozenset[str] = frozenset()

    def __call__(self, sample: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        return self.function(self.module, sample, timestep, conditioning)

    @property
    def call(self) -> Any:
        """What tells this call from another."""
        return f"{self.function.__module__}.{self.function.__qualname__}"

    def call_module(self) -> nn.Module:
        return _Called(self).eval()

    def example_inputs(self, batch: int, seed: int = 0) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        inputs = {
            "sample": torch.randn((batch, *self.record.sample_shape), generator=generator),
            "timestep": torch.randint(0, 1000, (batch,), generator=generator),
        }
        for name, shape in self.shapes.items():
            value = torch.randn((batch, *shape), generator=generator)
            inputs[name] = value[:1].expand(batch, *shape).clone() if name in self.shared else value
        return inputs


def wrapped(
    module: nn.Module,
    function: Call,
    sample_shape: tuple[int, ...],
    shapes: Mapping[str, tuple[int, ...]] = {},
    shared: tuple[str, ...] = (),
) -> WrappedDenoiser:
    """Return a denoiser of any module, with its call and the shapes of its inputs beside sample and timestep."""
    record = ModelRecord(
        source="random",
        revision=None,
        family=type(module).__name__,
        weights_sha256=digest_weights(module),
        prediction_type="epsilon",
        scheduler=SCHEDULER,
        sample_shape=sample_shape,
        conditioning={},
    )
    family = FAMILIES["DiTTransformer2DModel"]  # it has to have one, and nothing asks it
    return WrappedDenoiser(module, record, family, function, shapes, frozenset(shared))


def _make(kind: type[nn.Module], config: dict[str, Any], function: Call) -> Callable[..., Denoiser]:
    def denoiser(*, seed: int = 0, **changes: Any) -> Denoiser:
        settings = config | changes
        size = settings.get("sample_size", 4)
        shapes: dict[str, tuple[int, ...]] = {"text": (TOKENS, TEXT)}
        if function in (_text_then_pooled, _packed):
            shapes["pooled"] = (POOLED,)
        if function is _packed:
            shapes["places"] = (size * size, 3)
        module = random_model(kind, settings, seed)
        return wrapped(module, function, (4, size, size), shapes, ("places",))

    return denoiser


small_sd3 = _make(SD3Transformer2DModel, SD3, _text_then_pooled)
small_flux = _make(FluxTransformer2DModel, FLUX, _packed)
small_pixart = _make(PixArtTransformer2DModel, PIXART, _pixart)
small_sana = _make(SanaTransformer2DModel, SANA, _text)
small_auraflow = _make(AuraFlowTransformer2DModel, AURAFLOW, _text)
JOINT = {
    "sd3": small_sd3,
    "flux": small_flux,
    "pixart": small_pixart,
    "sana": small_sana,
    "auraflow": small_auraflow,
}
