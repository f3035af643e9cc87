from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from benchmarks.quality import classes
from benchmarks.quality.rows import PARTS, Row, planned
from benchmarks.quality.weights import SkewedWeights, TiltedWeights
from gacq_deploy.calibration.planning import make_plan
from gacq_deploy.calibration.weighting.sample_weights import SampleWeights
from gacq_deploy.models.source import load_float_denoiser
from gacq_deploy.models.structure.graph import trace_model
from gacq_deploy.samples.calibration_set import CalibrationSet

TOTAL = 1000


def states(trajectories: int, steps: int) -> CalibrationSet:
    timesteps = np.tile(np.arange(steps)[::-1] * (TOTAL // steps), trajectories)
    count = len(timesteps)
    return CalibrationSet(
        latents=np.zeros((count, 1, 2, 2), np.float32),
        timesteps=timesteps.astype(np.int64),
        targets=np.zeros((count, 1, 2, 2), np.float32),
        conditioning={},
        trajectory=np.repeat(np.arange(trajectories), steps),
        step=np.tile(np.arange(steps), trajectories),
        validation=np.zeros(count, np.uint8),
    )


@pytest.mark.parametrize("part", sorted(PARTS))
def test_every_planned_row_has_a_recipe_and_follows_its_base(part: str) -> None:
    rows = planned(part, ["digits8"], ["w8a8"], [0])
    assert len(set(rows)) == len(rows)
    for position, row in enumerate(rows):
        assert Row.parse(row.key) == row
        row.recipe()
        assert row.base is None or row.base in rows[:position]


def test_a_row_without_a_polish_asks_for_none() -> None:
    assert Row("digits8", "w4a8", "uniform").recipe().calibration.polish.steps == 0
    assert Row("digits8", "w4a8", "uniform", "uniform").recipe().calibration.polish.steps > 0


@pytest.mark.parametrize(
    ("blocks", "polish", "mode", "stages"),
    [
        ("uniform", "none", "uniform", ("polish",)),
        ("uniform", "uniform", "uniform", ("polish",)),
        ("uniform", "gac", "gac", ("polish",)),
        ("gac", "none", "gac", ("reconstruction", "polish")),
        ("gac", "gac", "gac", ("reconstruction", "polish")),
        ("gac", "uniform", "gac", ("reconstruction",)),
        ("uniform", "noisy", "uniform", ("polish",)),
        ("nearest-mse", "uniform", "uniform", ("polish",)),
    ],
)
def test_weights_act_where_the_row_says(blocks: str, polish: str, mode: str, stages: tuple[str, ...]) -> None:
    weighting = Row("digits8", "w4a8", blocks, polish).recipe().calibration.weighting
    assert (weighting.mode, weighting.stages) == (mode, stages)


def test_rows_that_no_calibration_can_make_are_refused() -> None:
    with pytest.raises(ValueError, match="two weightings"):
        Row("digits8", "w4a8", "mse", "gac")
    with pytest.raises(ValueError, match="only our own rows"):
        Row("digits8", "w8a8", "ort-minmax", "uniform")


def test_skewed_weights_count_the_draws_and_lean_to_clean_steps() -> None:
    samples = states(trajectories=200, steps=20)
    weights = SkewedWeights(TOTAL, 0, (True, True)).for_block("conv_in", samples)
    assert weights.sum() == len(samples)
    clean = samples.timesteps < TOTAL // 2
    assert weights[clean].mean() > 1.1 * weights[~clean].mean()
    again = SkewedWeights(TOTAL, 0, (True, True)).for_block("mid_block", samples)
    assert np.array_equal(weights, again)


def test_tilted_weights_follow_the_timestep() -> None:
    samples = states(trajectories=2, steps=4)
    weights = TiltedWeights(TOTAL, 2.0, (True, True)).for_block("conv_in", samples)
    np.testing.assert_allclose(np.log(weights), 2 * samples.timesteps / TOTAL)


@pytest.mark.parametrize("given", [partial(SkewedWeights, TOTAL, 0), partial(TiltedWeights, TOTAL, 2.0)])
def test_given_weights_hold_in_their_stages_only(given: Callable[..., SampleWeights]) -> None:
    samples = states(trajectories=2, steps=4)
    weights = given((False, True))
    assert np.array_equal(weights.for_block("conv_in", samples), np.ones(8))
    assert not np.array_equal(weights.for_block("polish", samples), np.ones(8))


@pytest.mark.parametrize(("setting", "bits"), [("w8a8", 8), ("w4a8", 4)])
def test_the_transformer_keeps_float_what_only_sees_timestep_and_class(setting: str, bits: int) -> None:
    recipe = Row("dit-digits8", setting, "uniform").recipe()
    plan = make_plan(recipe, trace_model(load_float_denoiser(recipe.model)))
    names = {name.split(".", 2)[-1] for name in plan.modules}
    assert names == {"attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ff.net.0.proj", "ff.net.2"}
    assert {entry.spec.bits for entry in plan.of_role("weight")} == {bits}
    assert {entry.spec.bits for entry in plan.of_role("input")} == {8}


def test_models_of_the_same_images_share_their_judge(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trained: list[str] = []

    def train(model: str) -> nn.Module:
        trained.append(model)
        network: nn.Module = classes.example("score_classes").build_classifier()
        return network

    monkeypatch.setattr(classes, "_train", train)
    for model in ("dit-digits8", "fashion16", "digits8"):
        classes.load_classifier(model, tmp_path)
    assert trained == ["dit-digits8", "fashion16"]
