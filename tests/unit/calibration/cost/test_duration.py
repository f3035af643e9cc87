"""What is timed is the model's own work, on no more rows than a slow machine can run, and leaves it as it was."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gacq_deploy.calibration.cost import duration
from gacq_deploy.calibration.cost.duration import TimeOfRows, forward_time, time_block
from gacq_deploy.calibration.cost.memory import Counts
from gacq_deploy.calibration.planning import make_plan
from gacq_deploy.models.base import Denoiser
from gacq_deploy.models.structure.graph import trace_model
from gacq_deploy.quant.layers import quantized_layers
from gacq_deploy.samples.calibration_set import CalibrationSet
from tests.support.artifacts.quantized import tiny_settings
from tests.support.models.tiny import tiny_denoiser


def test_a_slow_call_is_not_made_on_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def run(rows: int) -> Callable[[], None]:
        return lambda: made.append(rows)

    assert TimeOfRows(run, 0.02)(8) > 0
    assert 8 in made
    made.clear()
    monkeypatch.setattr(duration, "_SLOW_S", 0.0)
    slow = TimeOfRows(run, 0.02)
    assert slow(100) == pytest.approx(slow(1) + 99 * max(0.0, slow(2) - slow(1)))
    assert made == [1, 2], "nor twice"
    made.clear()
    monkeypatch.setattr(duration, "_LONG_S", 0.0)
    long = TimeOfRows(run, 0.02)
    assert long(100) == pytest.approx(100 * long(1))
    assert made == [1]


def test_a_block_is_learned_and_the_model_is_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    denoiser, recipe = tiny_denoiser(), tiny_settings()
    graph = trace_model(denoiser)
    counts = Counts(recipe, denoiser, graph, make_plan(recipe, graph), 1, 40, 10, 2048)
    before = {name: value.clone() for name, value in denoiser.module.state_dict().items()}
    found = time_block(counts)
    assert found.step > 1, "a step runs the block forward, and more"
    assert found.preparing > 0
    assert not quantized_layers(denoiser.module)
    after = denoiser.module.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not list(tmp_path.iterdir())
    assert forward_time(denoiser)(4) > 0


def test_no_more_rows_are_prepared_than_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser, recipe = tiny_denoiser(), tiny_settings()
    graph = trace_model(denoiser)
    counts = Counts(recipe, denoiser, graph, make_plan(recipe, graph), 1, 40, 10, 2048)
    made: list[int] = []
    noise = duration._noise

    def counted(model: Denoiser, rows: int) -> CalibrationSet:
        made.append(rows)
        return noise(model, rows)

    monkeypatch.setattr(duration, "_noise", counted)
    monkeypatch.setattr(duration, "_SLOW_S", 0.0)
    assert time_block(counts).step > 0
    assert made == [1, 2]
