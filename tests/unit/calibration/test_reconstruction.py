"""Reconstruction lowers the block's error, obeys sample weights, never ends worse than nearest rounding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from gacq_deploy.calibration.reconstruction import (
    BlockTask,
    ReconstructionResult,
    block_loss,
    per_sample_loss,
    reconstruct_block,
    sample_losses,
)
from gacq_deploy.calibration.replay import BlockData
from gacq_deploy.errors import CalibrationError
from gacq_deploy.quant.layers import ActivationQuantizer, QuantizedLayer
from gacq_deploy.quant.ranges import RangeMethod, weight_scale
from gacq_deploy.quant.rounding import nearest_codes
from gacq_deploy.recipe.calibration import ReconstructionSection
from gacq_deploy.spec import TensorSpec

SPEC = TensorSpec(bits=3, axis=0, narrow=True)
UNIFORM = np.ones(64)


@dataclass
class Toy:
    """One convolution; two kinds of samples that use different input channels."""

    layer: QuantizedLayer
    quantizer: ActivationQuantizer
    data: BlockData

    def learn(self, weights: np.ndarray = UNIFORM, **settings: object) -> ReconstructionResult:
        section = ReconstructionSection.model_validate(
            {"iterations": 400, "batch": 16, "lr_rounding": 0.03} | settings
        )
        rows = np.arange(64)
        start = sample_losses(self.data, rows, section.batch)
        task = BlockTask("toy", {"conv": self.layer}, (self.quantizer,), self.data, rows, start, weights, 0)
        return reconstruct_block(task, section)

    def mean_loss(self, weights: np.ndarray = UNIFORM) -> float:
        return float((weights * sample_losses(self.data, np.arange(64), 16)).mean())

    def losses(self) -> np.ndarray:
        inputs, targets = self.data.batch(np.arange(64))
        with torch.no_grad():
            return block_loss(self.data.call(inputs), targets).numpy()


def make_toy(rank: int = 5) -> Toy:
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(8, 6, 3, padding=1).requires_grad_(False)
    conv.weight.data = torch.randn(conv.weight.shape, generator=generator)
    conv.get_parameter("bias").data = torch.randn(6, generator=generator)
    # correlated channels, as in real networks: with independent ones nearest rounding is already the best
    mix = torch.randn((2, 8, rank), generator=generator)
    z = torch.randn((64, rank, 6, 6), generator=generator)
    x = torch.cat([torch.einsum("oc,nchw->nohw", m, part) for m, part in zip(mix, z.split(32), strict=True)])
    scale = weight_scale(conv.weight, SPEC, RangeMethod("mse", 2.4))
    quantizer = ActivationQuantizer(TensorSpec(bits=8), float(x.abs().max()) / 127)
    layer = QuantizedLayer(conv, SPEC, scale, nearest_codes(conv.weight, scale, SPEC), quantizer, None)
    key = ("args", 0)
    return Toy(
        layer, quantizer, BlockData({key: x.numpy()}, (conv(x).numpy(),), lambda t, _=None: (layer(t[key]),))
    )


def test_it_lowers_the_error_and_ends_on_hard_codes_and_a_static_scale() -> None:
    toy = make_toy(rank=2)
    result = toy.learn()
    assert result.kept
    assert result.loss_end < 0.7 * result.loss_start
    assert result.loss_end == pytest.approx(toy.mean_loss())
    assert toy.layer.rounding is None
    assert toy.layer.codes.dtype == torch.int8
    assert not toy.quantizer.log_gain.requires_grad
    assert float(toy.quantizer.log_gain) == 0.0


def test_weights_move_the_error_to_where_they_are_small() -> None:
    first, second = make_toy(), make_toy()
    tilt = np.where(np.arange(64) < 32, 1.9, 0.1)
    first.learn(tilt)
    second.learn(tilt[::-1].copy())
    favoured = first.losses()[:32].mean() / second.losses()[:32].mean()
    neglected = first.losses()[32:].mean() / second.losses()[32:].mean()
    assert favoured < 0.8
    assert neglected > 1.25


def test_a_weight_of_zero_is_the_same_as_not_having_the_sample_in_the_loss() -> None:
    toy = make_toy()
    w = np.where(np.arange(64) < 32, 2.0, 0.0)
    assert toy.mean_loss(w) == pytest.approx(float(toy.losses()[:32].mean()))


def test_uniform_weights_equal_no_weights_bit_for_bit_and_runs_repeat() -> None:
    toys = [make_toy() for _ in range(2)]
    for toy in toys:
        toy.learn(np.ones(64))
    assert torch.equal(toys[0].layer.codes, toys[1].layer.codes)
    assert torch.equal(toys[0].quantizer.scale, toys[1].quantizer.scale)


def test_zero_iterations_keep_nearest_rounding() -> None:
    toy = make_toy()
    before = toy.layer.codes.clone()
    result = toy.learn(iterations=0)
    assert torch.equal(toy.layer.codes, before)
    assert result.loss_start == result.loss_end


def test_a_result_worse_than_nearest_rounding_is_undone() -> None:
    toy = make_toy()
    before, scale = toy.layer.codes.clone(), float(toy.quantizer.scale)
    result = toy.learn(iterations=3, lr_rounding=50.0, lr_scale=3.0, batch=2)
    assert not result.kept
    assert torch.equal(toy.layer.codes, before)
    assert float(toy.quantizer.scale) == pytest.approx(scale)
    assert toy.mean_loss() == pytest.approx(result.loss_start)


def test_a_loss_that_is_not_finite_stops_with_the_blocks_name_and_the_old_state() -> None:
    toy = make_toy()
    before = toy.layer.codes.clone()
    toy.data.targets[0][5] = np.nan
    with pytest.raises(CalibrationError, match=r"Block 'toy': the loss is nan at iteration") as caught:
        toy.learn()
    assert "resumes" in caught.value.hint
    assert torch.equal(toy.layer.codes, before)
    assert toy.layer.rounding is None


def test_per_sample_loss_sums_channels_and_averages_positions() -> None:
    a, b = torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)
    assert per_sample_loss(a, b).tolist() == [3.0, 3.0]
    assert per_sample_loss(a[:, :, 0, 0], b[:, :, 0, 0]).tolist() == [3.0, 3.0]
