"""Only a norm whose output nobody else reads may carry what its readers want."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gacq_deploy.models.base import Denoiser
from gacq_deploy.models.structure.norms import norms_of_linears
from tests.support.models.architectures import small_dit, small_sd_unet

BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"


@pytest.fixture(scope="module")
def unet() -> Denoiser:
    return small_sd_unet()


def test_transformer_blocks_of_a_unet_norm_for_their_linears_alone(unet: Denoiser) -> None:
    found = norms_of_linears(unet)
    assert {k: v for k, v in found.items() if k.startswith(f"{BLOCK}.")} == {
        f"{BLOCK}.norm1": {f"{BLOCK}.attn1.{name}" for name in ("to_q", "to_k", "to_v")},
        f"{BLOCK}.norm2": {f"{BLOCK}.attn2.to_q"},
        f"{BLOCK}.norm3": {f"{BLOCK}.ff.net.0.proj"},
    }
    # group norms of [B, C, H, W] scale another axis, and their output is laid out anew before a linear reads it
    assert all(".transformer_blocks." in name for name in found)


def test_modulated_norms_have_nothing_to_fold_into() -> None:
    assert norms_of_linears(small_dit(num_layers=1)) == {}


def test_another_reader_or_a_second_call_rules_a_norm_out(unet: Denoiser) -> None:
    norms = [unet.module.get_submodule(f"{BLOCK}.norm{n}") for n in (1, 2, 3)]

    def read(_module: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> None:
        torch.cat([output, output])

    def ask(_module: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> None:
        assert output.shape[0]
        assert output.dim() == 3

    before = norms_of_linears(unet)
    handles = [norms[0].register_forward_hook(read), norms[1].register_forward_hook(ask)]
    try:
        found = norms_of_linears(unet)
    finally:
        for handle in handles:
            handle.remove()
    assert set(before) - set(found) == {f"{BLOCK}.norm1"}
    shared = small_sd_unet()
    block = shared.module.get_submodule(BLOCK)
    block.norm2 = block.norm3
    assert not {f"{BLOCK}.norm2", f"{BLOCK}.norm3"} & set(norms_of_linears(shared))
