"""Blocks of several outputs, nested arguments and constants: cached and learned as the whole model has them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gacq_deploy.calibration.planning import make_plan
from gacq_deploy.calibration.reconstruction import (
    BlockTask,
    block_loss,
    per_sample_loss,
    reconstruct_block,
    sample_losses,
)
from gacq_deploy.calibration.replay import Replay, cache_bytes, full_pass
from gacq_deploy.errors import CalibrationError
from gacq_deploy.models.base import Denoiser
from gacq_deploy.models.pytree import leaves
from gacq_deploy.models.structure.graph import Block, ModelGraph, trace_model
from gacq_deploy.quant.layers import QuantizedLayer, float_mode
from gacq_deploy.quant.prepare import estimate_activation_scales, insert_quantizers
from gacq_deploy.recipe.calibration import ReconstructionSection
from gacq_deploy.recipe.load import load_recipe
from gacq_deploy.samples.calibration_set import CalibrationSet
from tests.support.models.joint_transformers import JOINT, small_flux, small_sd3, wrapped

BLOCKS = (
    "quantization.rules=[{match: '*', ignore: true}, {match: '*transformer_blocks.*', bits: 8}, "
    "{match: '*transformer_blocks.*', role: weight, bits: 4}]"
)


def random_samples(denoiser: Denoiser, rows: int = 24) -> CalibrationSet:
    inputs = {name: value.numpy() for name, value in denoiser.example_inputs(rows, seed=3).items()}
    sample, timesteps = inputs.pop("sample"), inputs.pop("timestep")
    nothing = np.zeros(rows, np.int64)
    return CalibrationSet(
        sample, timesteps, np.zeros_like(sample), inputs, nothing, nothing, nothing.astype(np.uint8)
    )


def quantized(denoiser: Denoiser, samples: CalibrationSet) -> tuple[ModelGraph, dict[str, QuantizedLayer]]:
    graph = trace_model(denoiser)
    plan = make_plan(load_recipe("fashion-w8a8", [BLOCKS]), graph)

    def run() -> Iterator[object]:
        return full_pass(denoiser, samples, 12)

    return graph, insert_quantizers(
        denoiser.module, plan, estimate_activation_scales(denoiser.module, plan, run)
    )


def record_blocks(denoiser: Denoiser, graph: ModelGraph, samples: CalibrationSet) -> dict[str, list[Tensor]]:
    """Run the whole model once; return what every block returns."""
    seen: dict[str, list[Tensor]] = {}

    def recorder(block: Block) -> Any:
        def hook(_m: nn.Module, _args: tuple[Any, ...], result: Any) -> None:
            found = dict(leaves(result))
            seen[block.name] = [found[path].clone() for path in block.outputs]

        return hook

    modules = graph.modules(denoiser)
    handles = [modules[b.name].register_forward_hook(recorder(b)) for b in graph.blocks]
    try:
        list(full_pass(denoiser, samples, len(samples)))
    finally:
        for handle in handles:
            handle.remove()
    return seen


@pytest.mark.parametrize("name", JOINT)
def test_both_streams_of_every_output_equal_whole_forward_passes(name: str, tmp_path: Path) -> None:
    denoiser = JOINT[name]()
    samples = random_samples(denoiser, 7)
    graph, _ = quantized(denoiser, samples)
    with float_mode(denoiser.module):
        floats = record_blocks(denoiser, graph, samples)
    rounded = record_blocks(denoiser, graph, samples)
    replay, largest = Replay(denoiser, graph, samples, tmp_path, memory_mb=2048), 0
    for index, block in enumerate(graph.blocks):
        data = replay.prepare(index)
        assert len(data.targets) == len(block.outputs)
        for target, whole in zip(data.targets, floats[block.name], strict=True):
            np.testing.assert_allclose(target, whole.numpy(), rtol=0, atol=2e-5)
        inputs, _ = data.batch(np.arange(7))
        with torch.no_grad():
            for mine, whole in zip(data.call(inputs), rounded[block.name], strict=True):
                torch.testing.assert_close(mine, whole, rtol=0, atol=2e-5)
        replay.advance(index, data)
        largest = max(largest, sum(p.stat().st_size for p in tmp_path.iterdir()))
    assert largest <= cache_bytes(graph, len(samples))
    replay.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (small_sd3, "transformer_blocks.0"),
        (small_sd3, "transformer_blocks.2"),
        (small_flux, "single_transformer_blocks.0"),
    ],
)
def test_reconstruction_lowers_the_loss_of_both_outputs(make: Any, name: str, tmp_path: Path) -> None:
    denoiser = make()
    samples = random_samples(denoiser)
    graph, layers = quantized(denoiser, samples)
    replay = Replay(denoiser, graph, samples, tmp_path, memory_mb=2048)
    for index, block in enumerate(graph.blocks):
        data = replay.prepare(index)
        if block.name == name:
            break
        replay.advance(index, data)
    rows = np.arange(len(samples))
    start = sample_losses(data, rows, 24)

    def by_output() -> list[float]:
        inputs, targets = data.batch(rows)
        with torch.no_grad():
            pairs = zip(data.call(inputs), targets, strict=True)
            return [float(per_sample_loss(o, t).mean()) for o, t in pairs]

    before = by_output()
    mine = {n: layer for n, layer in layers.items() if n.startswith(f"{name}.")}
    task = BlockTask(name, mine, (), data, rows, start, np.ones(len(rows)), 0)
    result = reconstruct_block(
        task, ReconstructionSection(iterations=60, batch=12, lr_rounding=0.03, warmup=0.2)
    )
    assert result.kept
    assert result.loss_start == pytest.approx(sum(before), rel=1e-4)
    assert result.loss_end < 0.9 * result.loss_start
    assert all(after < b for after, b in zip(by_output(), before, strict=True))
    replay.close()


def test_the_loss_of_several_outputs_is_the_sum_of_theirs() -> None:
    one, two = (torch.ones(2, 3), torch.zeros(2, 3)), (torch.ones(2, 5, 4), torch.full((2, 5, 4), 3.0))
    outputs, targets = zip(one, two, strict=True)
    assert block_loss(outputs, targets).tolist() == [3 + 20, 3 + 20]
    assert torch.equal(block_loss((one[0],), (one[1],)), per_sample_loss(*one))


class Scaled(nn.Module):
    """Its second block is given a scale that only looks constant."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), Shifted()

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.second(self.first(x), {"high": bool((x > 50).any())})
        return answer


class Shifted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, given: dict[str, bool]) -> Tensor:
        answer: Tensor = self.linear(x) + float(given["high"])
        return answer


def test_a_constant_that_differs_between_samples_is_refused(tmp_path: Path) -> None:
    denoiser = wrapped(Scaled().eval().requires_grad_(False), lambda m, x, _t, _c: m(x), (1, 1, 4))
    samples = random_samples(denoiser, 70)
    latents = samples.latents.copy()
    latents[-1] = 100
    graph = trace_model(denoiser)
    replay = Replay(denoiser, graph, replace(samples, latents=latents), tmp_path, memory_mb=2048)
    replay.advance(0, replay.prepare(0))
    with pytest.raises(CalibrationError, match=r"'second' is given args\[1\]\['high'\], which has no row"):
        replay.prepare(1)
    replay.close()
