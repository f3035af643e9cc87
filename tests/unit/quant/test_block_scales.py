"""Weights with a scale for every block of input features: each block is quantized as if it were alone."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

from gacq_deploy.quant.affine import half_exact, quantize_codes, spread_scale
from gacq_deploy.quant.layers import QuantizedLayer, input_quantizers
from gacq_deploy.quant.ranges import RangeMethod, weight_scale
from gacq_deploy.quant.rounding import AdaRound, nearest_codes
from gacq_deploy.quant.trainable import make_trainable
from gacq_deploy.spec import TensorSpec

OUT, IN, BLOCK = 3, 12, 4
SPEC = TensorSpec(bits=4, axis=0, narrow=True, block=BLOCK)
CHANNEL = TensorSpec(bits=4, axis=0, narrow=True)
weights = arrays(np.float32, (OUT, IN), elements=st.floats(-4, 4, width=16)).map(torch.from_numpy)


def blocked_layer(seed: int = 0) -> QuantizedLayer:
    torch.manual_seed(seed)
    linear = nn.Linear(IN, OUT).requires_grad_(False)
    scale = weight_scale(linear.weight, SPEC, RangeMethod("mse", 2.4))
    return QuantizedLayer(linear, SPEC, scale, nearest_codes(linear.weight, scale, SPEC), None, None)


@given(weights, st.sampled_from(["minmax", "mse:2.4"]))
def test_each_block_is_quantized_as_a_weight_of_its_own(w: torch.Tensor, method: str) -> None:
    parsed = RangeMethod.parse(method)
    scale = weight_scale(w, SPEC, parsed)
    assert scale.shape == (OUT, IN // BLOCK)
    # together, so that what counts as dead is measured against one largest scale
    alone = weight_scale(w.reshape(-1, BLOCK), CHANNEL, parsed).reshape(scale.shape)
    assert torch.equal(scale, half_exact(alone))
    codes = nearest_codes(w, scale, SPEC)
    assert int(codes.abs().max()) <= 7
    for row in range(OUT):
        for block in range(IN // BLOCK):
            part = slice(block * BLOCK, (block + 1) * BLOCK)
            assert torch.equal(codes[row, part], quantize_codes(w[row, part], scale[row, block], -7, 7))


@given(weights)
def test_minmax_blocks_are_at_most_half_a_step_off(w: torch.Tensor) -> None:
    scale = weight_scale(w, SPEC, RangeMethod("minmax"))
    spread = spread_scale(scale, 2, SPEC)
    off = (w - nearest_codes(w, scale, SPEC) * spread).abs()
    # the scale was rounded to half: seven steps may end 7 * 2^-11 of a step short of the largest value
    assert bool((off <= spread * (0.5 + 7 * 2**-11)).all())


@given(arrays(np.float32, (4,), elements=st.floats(2**-126, 2**120, width=32)).map(torch.from_numpy))
def test_scales_are_those_of_half_wherever_half_is_normal(scale: torch.Tensor) -> None:
    exact = half_exact(scale)
    normal = (scale >= 2**-14) & (scale < 65504)
    assert torch.equal(exact[normal], scale[normal].half().float())
    small_or_large = (scale < 2**-14 * (1 - 2**-11)) | (scale > 65520)
    assert torch.equal(exact[small_or_large], scale[small_or_large])
    assert torch.equal(half_exact(exact), exact)


def test_learned_rounding_starts_at_the_float_weight_and_moves_codes_by_one() -> None:
    layer = blocked_layer()
    rounding = AdaRound(layer.float_weight, layer.weight_scale, SPEC)
    spread = spread_scale(layer.weight_scale, 2, SPEC)
    clipped = layer.float_weight.clamp(-7 * spread, 7 * spread)
    torch.testing.assert_close(rounding.soft_weight(), clipped, rtol=0, atol=1e-6)
    assert torch.equal(rounding.codes(), layer.codes)
    with torch.no_grad():
        rounding.alpha.neg_()
    moved = (rounding.codes() - layer.codes).abs()
    assert int(moved.max()) == 1


def test_the_input_stays_float() -> None:
    layer = blocked_layer()
    x = torch.randn(5, IN)
    weight = layer.codes.float() * layer.weight_scale.repeat_interleave(BLOCK, 1)
    expected = nn.functional.linear(x, weight, layer.float_bias)
    assert torch.equal(layer(x), expected)
    layer.quantize_output = True
    assert torch.equal(layer(x), expected)
    assert input_quantizers({"a": layer}) == {}


def test_block_scales_are_polished_and_end_exact_in_half() -> None:
    layer = blocked_layer()
    module = nn.ModuleDict({"a": layer})
    trainables = make_trainable(module, {"a": layer}, ("activation_scales", "weight_scales", "biases"))
    assert set(trainables.parameters) == {"a.scale_log_gain", "a.bias"}
    before = layer.weight_scale.clone()
    with torch.no_grad():
        trainables.parameters["a.scale_log_gain"].copy_(torch.linspace(-0.1, 0.1, 9).reshape(3, 3))
    layer(torch.randn(2, IN)).sum().backward()
    assert bool(trainables.parameters["a.scale_log_gain"].grad.abs().gt(0).any())
    trainables.freeze()
    assert not torch.equal(layer.weight_scale, before)
    assert torch.equal(layer.weight_scale, layer.weight_scale.half().float())
    assert not layer.weight_scale.requires_grad
