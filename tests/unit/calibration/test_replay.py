"""Block by block with a cache gives exactly what whole forward passes give."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_map

from gacq_deploy.calibration.planning import make_plan
from gacq_deploy.calibration.replay import Replay, cache_bytes, chunk_size, full_pass
from gacq_deploy.errors import CalibrationError
from gacq_deploy.models.base import Denoiser
from gacq_deploy.models.structure.graph import ModelGraph, trace_model
from gacq_deploy.models.trajectories.drawn import collect_samples
from gacq_deploy.quant.layers import QuantizedLayer, float_mode
from gacq_deploy.quant.prepare import estimate_activation_scales, insert_quantizers
from gacq_deploy.recipe.load import load_recipe
from gacq_deploy.recipe.sections import SamplesSection
from gacq_deploy.samples.calibration_set import CalibrationSet, load_samples
from tests.support.models.tiny import tiny_denoiser


@pytest.fixture
def setting(tmp_path: Path) -> tuple[Denoiser, ModelGraph, CalibrationSet]:
    denoiser = tiny_denoiser()
    graph = trace_model(denoiser)
    collect_samples(denoiser, SamplesSection(trajectories=3, steps=4, validation_share=0), tmp_path / "s")
    samples = load_samples(tmp_path / "s")
    plan = make_plan(load_recipe("fashion-w8a8"), graph)

    def run() -> Iterator[object]:
        return full_pass(denoiser, samples, 12)

    insert_quantizers(denoiser.module, plan, estimate_activation_scales(denoiser.module, plan, run))
    return denoiser, graph, samples


def record_block(
    denoiser: Denoiser, graph: ModelGraph, name: str, samples: CalibrationSet
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Run the whole model once; return the tensor arguments and the output of one block.

    Every block gets its tensors contiguous, as a cache holds them: kernels round otherwise in another memory layout.
    """
    seen: list[tuple[list[torch.Tensor], torch.Tensor]] = []

    def hook(_m: object, args: tuple[object, ...], kwargs: dict[str, object], output: torch.Tensor) -> None:
        seen.append(([a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)], output))

    def lay_out(_m: object, args: tuple[object, ...], kwargs: dict[str, object]) -> tuple[Any, Any]:
        return tree_map(lambda a: a.contiguous() if isinstance(a, torch.Tensor) else a, (args, kwargs))

    modules = dict(denoiser.module.named_modules())
    handles = [modules[b.name].register_forward_pre_hook(lay_out, with_kwargs=True) for b in graph.blocks]
    handles.append(modules[name].register_forward_hook(hook, with_kwargs=True))
    try:
        list(full_pass(denoiser, samples, len(samples)))
    finally:
        for handle in handles:
            handle.remove()
    return seen[0]


def test_both_streams_equal_whole_forward_passes(
    setting: tuple[Denoiser, ModelGraph, CalibrationSet], tmp_path: Path
) -> None:
    denoiser, graph, samples = setting
    replay = Replay(denoiser, graph, samples, tmp_path, memory_mb=2048)
    for index, block in enumerate(graph.blocks):
        data = replay.prepare(index)
        with float_mode(denoiser.module):
            _, float_output = record_block(denoiser, graph, block.name, samples)
        inputs, quantized_output = record_block(denoiser, graph, block.name, samples)
        np.testing.assert_allclose(data.targets[0], float_output.numpy(), rtol=0, atol=1e-5)
        carried = list(data.inputs.values())
        assert len(carried) == len(inputs)
        for mine, whole in zip(carried, inputs, strict=True):
            np.testing.assert_array_equal(mine, whole.numpy())
        rows, _ = data.batch(np.arange(len(samples)))
        with torch.no_grad():
            np.testing.assert_array_equal(data.call(rows)[0].numpy(), quantized_output.numpy())
        replay.advance(index, data)
    replay.close()
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_each_block_runs_once_per_stream_and_sample(
    setting: tuple[Denoiser, ModelGraph, CalibrationSet], tmp_path: Path
) -> None:
    denoiser, graph, samples = setting
    rows_seen: dict[str, int] = {}

    def counting(name: str) -> object:
        def hook(_m: object, args: tuple[torch.Tensor, ...]) -> None:
            rows_seen[name] = rows_seen.get(name, 0) + len(args[0])

        return hook

    layers = [n for n, m in denoiser.module.named_modules() if isinstance(m, QuantizedLayer)]
    for name in layers:
        denoiser.module.get_submodule(name).register_forward_pre_hook(counting(name))  # type: ignore[arg-type]
    replay = Replay(denoiser, graph, samples, tmp_path, memory_mb=2048)
    for index in range(len(graph.blocks)):
        replay.advance(index, replay.prepare(index))
    assert rows_seen == {name: 2 * len(samples) for name in layers}


def test_the_cache_stays_within_its_estimate_and_forgets_what_is_done(
    setting: tuple[Denoiser, ModelGraph, CalibrationSet], tmp_path: Path
) -> None:
    denoiser, graph, samples = setting
    folder = tmp_path / "cache"
    folder.mkdir()
    replay, largest = Replay(denoiser, graph, samples, folder, memory_mb=2048), 0
    for index in range(len(graph.blocks)):
        data = replay.prepare(index)
        replay.advance(index, data)
        largest = max(largest, sum(p.stat().st_size for p in folder.iterdir()))
    assert largest <= cache_bytes(graph, len(samples))
    assert largest > 0.3 * cache_bytes(graph, len(samples))


def test_a_smaller_memory_bound_gives_smaller_chunks() -> None:
    graph = trace_model(tiny_denoiser(block_out_channels=(64, 128), sample_size=64))
    sizes = [chunk_size(graph, mb) for mb in (64, 128, 4096)]
    assert 1 <= sizes[0] < sizes[1] < sizes[2] <= 64


def test_a_block_that_is_not_finite_is_named(
    setting: tuple[Denoiser, ModelGraph, CalibrationSet], tmp_path: Path
) -> None:
    denoiser, graph, samples = setting
    index = next(i for i, b in enumerate(graph.blocks) if b.name == "down_blocks.0.resnets.0")
    replay = Replay(denoiser, graph, samples, tmp_path, memory_mb=2048)
    denoiser.module.get_submodule("down_blocks.0.resnets.0.norm1").get_parameter("weight").data[0] = float(
        "nan"
    )
    for i in range(index):
        replay.advance(i, replay.prepare(i))
    with pytest.raises(CalibrationError, match=r"'down_blocks.0.resnets.0' holds NaN"):
        replay.prepare(index)
