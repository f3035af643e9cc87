"""The model's output error: as numpy has it, as a function of parameters, and without harming the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gacq_deploy.calibration.output_error import output_loss, output_losses, sqnr_by_group
from gacq_deploy.calibration.replay import Replay
from gacq_deploy.calibration.weighting.weighting import Split
from gacq_deploy.models.base import Denoiser
from gacq_deploy.models.structure.graph import trace_model
from gacq_deploy.quant.layers import QuantizedLayer
from gacq_deploy.samples.calibration_set import CalibrationSet, timestep_buckets
from tests.support.artifacts.quantized import quantized_tiny, tiny_samples
from tests.support.models.tiny import tiny_denoiser


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> CalibrationSet:
    return tiny_samples(tmp_path_factory.mktemp("samples"))


@pytest.fixture
def quantized() -> tuple[Denoiser, dict[str, QuantizedLayer]]:
    return quantized_tiny()


def shared_quantizer(layers: dict[str, QuantizedLayer]) -> tuple[str, QuantizedLayer]:
    """Return a layer whose input quantizer other layers share."""
    users: dict[int, list[str]] = {}
    for name, layer in layers.items():
        users.setdefault(id(layer.input_quantizer), []).append(name)
    name = next(names[0] for names in users.values() if len(names) > 1)
    return name, layers[name]


def outputs(denoiser: Denoiser, samples: CalibrationSet) -> np.ndarray:
    conditioning = {k: torch.from_numpy(v) for k, v in samples.conditioning.items()}
    with torch.no_grad():
        latents, timesteps = torch.from_numpy(samples.latents), torch.from_numpy(samples.timesteps)
        return denoiser(latents, timesteps, conditioning).double().numpy()


def squares(denoiser: Denoiser, samples: CalibrationSet, chunk: int) -> tuple[np.ndarray, np.ndarray]:
    """Return every row's mean square of target and of error."""
    signal = (samples.targets.astype(np.float64) ** 2).reshape(len(samples), -1).mean(1)
    return signal, output_losses(denoiser, samples, np.arange(len(samples)), chunk)


def test_sqnr_by_group_is_what_numpy_has(
    samples: CalibrationSet, quantized: tuple[Denoiser, dict[str, QuantizedLayer]]
) -> None:
    denoiser, _ = quantized
    chosen = samples.rows(Split(samples, groups=1).measured)
    groups = timestep_buckets(chosen.timesteps, 2)
    decibels = sqnr_by_group(*squares(denoiser, chosen, 3), groups)
    error = outputs(denoiser, chosen) - chosen.targets
    expected = [
        10 * np.log10((chosen.targets[here].astype(np.float64) ** 2).sum() / (error[here] ** 2).sum())
        for here in (groups == g for g in range(2))
    ]
    assert decibels.dtype == np.float32
    np.testing.assert_allclose(decibels, expected, atol=0.05)


def test_a_model_without_error_is_at_the_ceiling(samples: CalibrationSet) -> None:
    rows = samples.rows(np.arange(6))
    decibels = sqnr_by_group(*squares(tiny_denoiser(), rows, 2), timestep_buckets(rows.timesteps, 3))
    assert float(decibels.min()) > 100
    assert float(decibels.max()) <= 200


def test_rows_told_are_those_held_out_or_all(samples: CalibrationSet) -> None:
    held = Split(samples, groups=1).measured
    assert set(samples.validation[held].tolist()) == {1}
    assert len(held) == samples.validation.sum()
    nothing_held = samples.rows(samples.validation == 0)
    assert len(Split(nothing_held, groups=1).measured) == len(nothing_held)


def test_the_loss_is_the_mean_squared_error_and_the_parameters_given_count(
    samples: CalibrationSet, quantized: tuple[Denoiser, dict[str, QuantizedLayer]]
) -> None:
    denoiser, layers = quantized
    rows = np.array([3, 8, 1])
    loss = output_loss(denoiser, samples)
    with torch.no_grad():
        plain = loss({}, rows)
    assert plain.double().numpy() == pytest.approx(output_losses(denoiser, samples, rows, 8), rel=1e-4)
    name = f"{next(iter(layers))}.input_quantizer.log_gain"
    log_gain = torch.tensor(0.7, requires_grad=True)
    moved = loss({name: log_gain}, rows)
    assert not torch.equal(moved.detach(), plain)
    (gradient,) = torch.autograd.grad(moved.sum(), [log_gain])
    assert float(gradient) != 0
    with torch.no_grad():
        assert torch.equal(loss({}, rows), plain)
        denoiser.module.get_parameter(name).fill_(0.7)
        assert torch.equal(loss({}, rows), moved)


def test_a_parameter_that_layers_share_survives_the_output_loss(
    samples: CalibrationSet, quantized: tuple[Denoiser, dict[str, QuantizedLayer]]
) -> None:
    denoiser, layers = quantized
    name, layer = shared_quantizer(layers)
    before = layer.input_quantizer.log_gain
    value = torch.tensor(0.1, requires_grad=True)
    output_loss(denoiser, samples)({f"{name}.input_quantizer.log_gain": value}, np.arange(2)).sum().backward()
    assert isinstance(layer.input_quantizer.log_gain, nn.Parameter)
    assert layer.input_quantizer.log_gain is before
    assert float(before) == 0.0
    assert value.grad is not None
    users = [x for x in layers.values() if x.input_quantizer is layer.input_quantizer]
    assert len(users) > 1
    assert all(x.input_quantizer.log_gain is before for x in users)


def test_a_parameter_that_layers_share_survives_a_call_of_its_block(
    samples: CalibrationSet, quantized: tuple[Denoiser, dict[str, QuantizedLayer]], tmp_path: Path
) -> None:
    float_graph = trace_model(tiny_denoiser())
    denoiser, layers = quantized
    name, layer = shared_quantizer(layers)
    replay = Replay(denoiser, float_graph, samples, tmp_path, 64)
    try:
        for index, block in enumerate(float_graph.blocks):
            data = replay.prepare(index)
            if name in {s.module for s in block.sites}:
                break
            replay.advance(index, data)
        before = layer.input_quantizer.log_gain
        inputs, _ = data.batch(np.arange(4))
        inside = f"{name.removeprefix(block.name).lstrip('.')}.input_quantizer.log_gain"
        value = torch.tensor(0.8, requires_grad=True)
        with torch.no_grad():
            (plain,) = data.call(inputs)
        (moved,) = data.call(inputs, {inside: value})
    finally:
        replay.close()
    assert not torch.equal(moved.detach(), plain)
    assert isinstance(layer.input_quantizer.log_gain, nn.Parameter)
    assert layer.input_quantizer.log_gain is before
    assert float(before) == 0.0
