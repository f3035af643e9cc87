"""A failed verdict says what helps, with numbers that come from what failed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gacq_deploy.parity.remedies import advice, needed_sqnr_db, remedies, say_gate
from gacq_deploy.parity.report import ParityReport, assemble, measured
from gacq_deploy.recipe.load import load_recipe
from gacq_deploy.recipe.presets import PRESETS
from gacq_deploy.recipe.sections import ParitySection
from gacq_deploy.run_directory import RunDirectory

BUDGET = {
    "latents_differ": 0.0,
    "eps_sqnr_db": 25.0,
    "eps_cosine": 0.999,
    "trajectory_cosine": 0.99,
    "image_psnr_db": 40.0,
    "image_ssim": 0.99,
}


def judged(difference_db: float = 0.1, **budget: float) -> ParityReport:
    section = ParitySection()
    graphs = ("float.onnx@ort-cpu", "int8.onnx@ort-cpu")
    comparisons = [
        measured("error", *graphs, {"difference_db": difference_db}),
        measured("budget", *graphs, {**BUDGET, **budget}),
    ]
    return assemble(comparisons, section, trajectory={}, noise_floor={}, subject={})


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "my run")
    directory.root.mkdir()
    load_recipe("fashion-w8a8", preset="quick").save(directory.recipe_path)
    return directory


@pytest.mark.parametrize(
    ("budget", "needed"),
    [
        ({}, None),
        ({"eps_sqnr_db": 15.0}, 21),
        # 18 dB of the images are missing: so many are asked of the steps
        ({"image_psnr_db": 12.0}, 44),
        ({"image_ssim": 0.5}, 32),
        ({"image_ssim": 0.5, "image_psnr_db": 12.0}, 44),
    ],
)
def test_the_target_comes_from_what_failed(budget: dict[str, float], needed: float | None) -> None:
    assert needed_sqnr_db(judged(**budget)) == needed


def test_what_helps_is_said_in_order_with_commands(run: RunDirectory) -> None:
    effort, steps, layers = remedies(judged(image_psnr_db=12.0), run, run.load_recipe())
    assert effort.command == (
        "calibrate", "-r", run.recipe_path, "--preset", "standard", "-o", run.root.with_name("my run-standard"),
    )  # fmt: skip
    assert steps.command[3:5] == ("--set", "runtime.step_policy.float_steps=2")
    assert layers.command == ("sensitivity", run.root, "--min-sqnr", "44")


def test_beyond_the_best_preset_there_is_none(run: RunDirectory) -> None:
    load_recipe("fashion-w8a8", preset="best").save(run.recipe_path)
    assert [r.command[0] for r in remedies(judged(image_ssim=0.5), run, run.load_recipe())] == [
        "calibrate",
        "sensitivity",
    ]
    assert "best" in PRESETS


def test_where_something_computes_wrongly_more_effort_is_no_remedy(run: RunDirectory) -> None:
    report = judged(difference_db=3.0)
    assert remedies(report, run, run.load_recipe()) == ()
    assert needed_sqnr_db(report) is None
    (words,) = advice(report.failed_gates)
    assert "another engine" in words


def test_a_gate_is_said_with_value_and_bound() -> None:
    report = judged(image_psnr_db=12.1, difference_db=3.0)
    error, images = report.failed_gates
    assert say_gate(images) == "int8.onnx@ort-cpu: PSNR of same-seed images, mean (dB) is 12.1, needs 30"
    assert say_gate(error).endswith("is 3, at most 0.5")
    assert say_gate(replace(images, value=None)).endswith("is not measured, needs 30")
