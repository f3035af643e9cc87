"""Planned layers are wrapped, everything else is left alone, and float mode gives the float model back exactly."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from gacq_deploy.calibration.planning import make_plan
from gacq_deploy.errors import CalibrationError
from gacq_deploy.models.base import Denoiser
from gacq_deploy.models.structure.graph import trace_model
from gacq_deploy.quant.layers import QuantizedLayer, float_mode, output_mode, quantized_layers
from gacq_deploy.quant.prepare import estimate_activation_scales, insert_quantizers
from gacq_deploy.recipe.load import load_recipe
from gacq_deploy.spec import QuantPlan
from tests.support.models.tiny import tiny_denoiser


def run_model(denoiser: Denoiser, seed: int = 0) -> torch.Tensor:
    inputs = denoiser.example_inputs(4, seed)
    sample, timestep = inputs.pop("sample"), inputs.pop("timestep")
    with torch.no_grad():
        return denoiser(sample, timestep, inputs)


def prepared() -> tuple[Denoiser, QuantPlan, dict[str, QuantizedLayer]]:
    denoiser = tiny_denoiser()
    plan = make_plan(load_recipe("fashion-w8a8"), trace_model(denoiser))

    def run() -> Iterator[object]:
        yield run_model(denoiser)

    scales = estimate_activation_scales(denoiser.module, plan, run)
    return denoiser, plan, insert_quantizers(denoiser.module, plan, scales)


def test_float_mode_is_the_float_model_bit_for_bit_and_quantized_mode_is_close() -> None:
    reference = run_model(tiny_denoiser())
    denoiser, plan, layers = prepared()
    assert tuple(layers) == plan.modules
    with float_mode(denoiser.module):
        assert torch.equal(run_model(denoiser), reference)
    quantized = run_model(denoiser)
    error = float((quantized - reference).norm() / reference.norm())
    assert 1e-4 < error < 0.1
    with output_mode(denoiser.module):
        assert not torch.equal(run_model(denoiser), quantized)
    assert torch.equal(run_model(denoiser), quantized)


def test_the_layer_computes_with_the_deployable_weight() -> None:
    denoiser, _, layers = prepared()
    name = "mid_block.resnets.0.conv1"
    layer = layers[name]
    assert quantized_layers(denoiser.module)[name] is layer
    weight = layer.codes.numpy().astype(np.float32) * layer.weight_scale.numpy().reshape(-1, 1, 1, 1)
    np.testing.assert_array_equal(layer.weight().numpy(), weight)
    x = torch.randn(2, weight.shape[1], 8, 8)
    expected = torch.nn.functional.conv2d(
        layer.input_quantizer(x), torch.from_numpy(weight), layer.layer.get_parameter("bias"), padding=1
    )
    assert torch.allclose(layer(x), expected, atol=1e-6)


def test_sites_that_read_one_tensor_share_one_quantizer() -> None:
    _, _, layers = prepared()
    attention = next(n for n in layers if n.endswith("to_q")).removesuffix("to_q")
    q, k, v = (layers[f"{attention}to_{c}"] for c in "qkv")
    assert q.input_quantizer is k.input_quantizer is v.input_quantizer


def test_a_nan_activation_names_its_site() -> None:
    denoiser = tiny_denoiser()
    plan = make_plan(load_recipe("fashion-w8a8"), trace_model(denoiser))
    denoiser.module.get_submodule("mid_block.resnets.0.conv1").get_parameter("bias").data[0] = float("nan")

    def run() -> Iterator[object]:
        yield run_model(denoiser)

    with pytest.raises(CalibrationError, match=r"mid_block.resnets.0.conv1:output.*NaN"):
        estimate_activation_scales(denoiser.module, plan, run)
