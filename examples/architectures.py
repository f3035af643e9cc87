"""What do the shipped denoisers look like before they are trained? A UNet, or a transformer over patches."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar

from diffusers import DiTTransformer2DModel, UNet2DModel
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

NUM_CLASSES = 10
"""Of both datasets; the class behind the last is the null class."""


@dataclass(frozen=True)
class UNetShape:
    """A class-conditional UNet."""

    channels: tuple[int, ...]
    attention_level: int
    head_dim: int
    component: ClassVar[str] = "unet"

    def build(self, size: int) -> UNet2DModel:
        """Return the untrained model for images ``[1, size, size]``."""
        levels = range(len(self.channels))
        return UNet2DModel(
            sample_size=size,
            in_channels=1,
            out_channels=1,
            layers_per_block=1,
            block_out_channels=self.channels,
            down_block_types=tuple(
                "AttnDownBlock2D" if i == self.attention_level else "DownBlock2D" for i in levels
            ),
            up_block_types=tuple(
                "AttnUpBlock2D" if i == self.attention_level else "UpBlock2D" for i in reversed(levels)
            ),
            attention_head_dim=self.head_dim,
            norm_num_groups=8,
            num_class_embeds=NUM_CLASSES + 1,
        )

    def attention_kernel(self) -> AbstractContextManager[None]:
        """Return PyTorch's own choice."""
        return nullcontext()


@dataclass(frozen=True)
class DiTShape:
    """A class-conditional DiT: as many tokens as patches, every block modulated by timestep and class."""

    layers: int
    heads: int
    head_dim: int
    patch: int
    component: ClassVar[str] = "transformer"

    def build(self, size: int) -> DiTTransformer2DModel:
        """Return the untrained model for images ``[1, size, size]``, as "adaLN-Zero" (arXiv 2212.09748) starts.

        Every block starts as the identity and the output as zero. The model is in evaluation mode, in which it has
        to be trained: otherwise each block would drop classes of its own.
        """
        model = DiTTransformer2DModel(
            sample_size=size,
            in_channels=1,
            patch_size=self.patch,
            num_layers=self.layers,
            num_attention_heads=self.heads,
            attention_head_dim=self.head_dim,
            num_embeds_ada_norm=NUM_CLASSES,
        )
        for module in model.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for block in model.transformer_blocks:
            nn.init.normal_(block.norm1.emb.class_embedder.embedding_table.weight, std=0.02)
            nn.init.zeros_(block.norm1.linear.weight)
        for last in (model.proj_out_1, model.proj_out_2):
            nn.init.zeros_(last.weight)
        return model.eval()

    def attention_kernel(self) -> AbstractContextManager[None]:
        """Return plain products: over few tokens, on a CPU, they train in 0.6 of the time of PyTorch's choice."""
        return sdpa_kernel(SDPBackend.MATH)
