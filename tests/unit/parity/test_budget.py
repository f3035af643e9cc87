"""What the user will see: guided trajectories of latents and packed states, judged like those of images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gacq_deploy.artifact.probe import Probe
from gacq_deploy.backends.base import Engine, TensorInfo
from gacq_deploy.backends.function import FunctionEngine
from gacq_deploy.parity.budget import (
    FloatTrajectories,
    Held,
    compare_with_float,
    describe_comparison,
    hold_out,
    run_freely,
)
from gacq_deploy.parity.report import Comparison, assemble
from gacq_deploy.recipe.sections import ParitySection
from gacq_deploy.samples.conditioning import Conditions
from gacq_deploy.sampling.flow import FlowSampler
from gacq_deploy.spec import Array
from tests.support.artifacts.samplers import record_of

PACKED, LATENT, IMAGE = (6, 4), (4, 8, 8), (1, 8, 8)
STEPS, BATCH = 3, 4
SECTION = ParitySection(images=5, steps=STEPS, buckets=2)
NAMES = ("float", "int8")
Error = Callable[[Mapping[str, Array]], NDArray[np.float32]]


def held_of(shape: tuple[int, ...], *, guided: bool = True) -> Held:
    rng = np.random.default_rng(0)
    text, empty = ({"text": rng.standard_normal((3, 2), np.float32)} for _ in range(2))
    conditions = Conditions(text, empty if guided else None, 3.0).cycle(SECTION.images)
    sampler = FlowSampler.from_config({"shift": 3.0}, STEPS, timestep_scale=0.001)
    return Held(sampler, shape, tuple(range(SECTION.images)), conditions, BATCH)


def engine_of(shape: tuple[int, ...], error: Error | None = None, rows: list[int] | None = None) -> Engine:
    """Answer from state, timestep and text; ``error`` [N] is added to each row."""

    def function(feeds: Mapping[str, Any]) -> dict[str, Any]:
        if rows is not None:
            rows.append(len(feeds["sample"]))
        ones = (slice(None), *[None] * len(shape))
        output = np.tanh(feeds["sample"] * 2 + feeds["text"].sum(axis=1)[ones]) * feeds["timestep"][ones]
        pattern = np.cos(np.arange(np.prod(shape))).reshape(shape).astype(np.float32)
        if error is not None:
            output = output + error(feeds)[ones] * pattern
        return {"output": output}

    inputs = (
        TensorInfo("sample", "float32", (None, *shape)),
        TensorInfo("timestep", "float32", (None,)),
        TensorInfo("text", "float32", (None, 2)),
    )
    return FunctionEngine(function, inputs, (TensorInfo("output", "float32", (None, *shape)),), "x")


def truth_of(held: Held) -> FloatTrajectories:
    with engine_of(held.shape) as engine:
        return run_freely(engine, held)


def judged(held: Held, error: Error | None = None, rows: list[int] | None = None) -> Comparison:
    truth = truth_of(held)
    with engine_of(held.shape, error, rows) as engine:
        comparison, _ = compare_with_float(engine, NAMES, truth, held, SECTION)
    report = assemble(
        (comparison,),
        SECTION,
        trajectory={"compared": describe_comparison(truth)},
        noise_floor={},
        subject={},
    )
    return report.comparisons[0]


def everywhere(size: float) -> Error:
    return lambda feeds: np.full(len(feeds["sample"]), size, np.float32)


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("shape", [PACKED, LATENT, IMAGE], ids=["packed", "latent", "image"])
def test_trajectories_hold_what_the_network_saw_and_said(shape: tuple[int, ...], guided: bool) -> None:
    held = held_of(shape, guided=guided)
    truth, branches = truth_of(held), 2 if guided else 1
    assert truth.states.shape == (STEPS, SECTION.images, *shape)
    assert truth.outputs.shape == (STEPS, branches * SECTION.images, *shape)
    assert truth.final.shape == (SECTION.images, *shape)
    fixed, run = held.conditions.feeds(), held.sampler.begin(held.seeds)
    with engine_of(shape) as engine:
        for step, fed in enumerate(held.sampler.model_timesteps):
            sample = np.concatenate([truth.states[step]] * branches)
            feeds = {"sample": sample, "timestep": np.full(len(sample), fed), **fixed}
            np.testing.assert_array_equal(engine.run(feeds)["output"], truth.outputs[step])
            after = run.step(held.conditions.guide(truth.outputs[step]), step, truth.states[step])
            following = [*truth.states[1:], truth.final][step]
            np.testing.assert_array_equal(after, following)


@pytest.mark.parametrize("shape", [PACKED, LATENT, IMAGE], ids=["packed", "latent", "image"])
def test_an_engine_like_the_float_model_passes(shape: tuple[int, ...]) -> None:
    comparison = judged(held_of(shape))
    assert comparison.passed, comparison
    assert comparison.metrics["image_psnr_db"] == 100
    assert comparison.metrics["eps_sqnr_db"] == 300
    assert comparison.metrics["latents_differ"] == 0
    limits = [(row["timestep_max"], row["timestep_min"]) for row in comparison.by_timestep]
    assert limits == [(1000, 751), (9, 9)], "on the training scale, whatever the network is told"


def test_similarity_of_space_is_not_asked_of_packed_states() -> None:
    packed, latent = judged(held_of(PACKED)), judged(held_of(LATENT))
    assert "image_ssim" not in packed.thresholds
    assert "image_ssim" not in packed.metrics
    assert "[6, 4]" in packed.exempt["image_ssim"]
    assert "image_ssim" in latent.thresholds
    assert not latent.exempt


def test_what_is_compared_is_said() -> None:
    truth = truth_of(held_of(PACKED))
    low, high = truth.final.min(), truth.final.max()
    assert describe_comparison(truth) == (
        f"PSNR is of the final latents [6, 4], not clipped, over the float model's own range, {low:.4g} to {high:.4g}."
    )
    assert "PSNR and SSIM are" in str(describe_comparison(truth_of(held_of(LATENT))))
    assert describe_comparison(truth_of(held_of(IMAGE))) is None


def test_errors_beyond_an_images_range_count_in_latents() -> None:
    held = held_of(LATENT)
    truth = truth_of(held)
    assert np.abs(truth.final).max() > 1
    shares = {size: judged(held, everywhere(size)).metrics["image_psnr_db"] or 0.0 for size in (0.01, 0.1)}
    # guidance cancels what both branches have in common: only the last states differ, tenfold
    assert shares[0.01] > shares[0.1] + 15


def test_an_error_in_the_negative_branch_alone_is_seen() -> None:
    held = held_of(PACKED)
    assert held.conditions.negative is not None
    negative = {row.tobytes() for row in held.conditions.negative["text"]}

    def error(feeds: Mapping[str, Array]) -> NDArray[np.float32]:
        return np.array([0.2 if row.tobytes() in negative else 0.0 for row in feeds["text"]], np.float32)

    comparison = judged(held, error)
    assert not comparison.passed
    assert {"eps_sqnr_db", "image_psnr_db"} <= set(comparison.failed)
    assert judged(held, everywhere(1e-4)).passed


def test_no_call_holds_more_than_a_batch() -> None:
    held, rows = held_of(PACKED), list[int]()
    judged(held, rows=rows)
    # free: 5 images by 4, two rows each; teacher-forced: 3 steps of 10 rows by 4
    assert rows == [8] * STEPS + [2] * STEPS + [4] * 7 + [2]


def test_conditions_of_prompts_are_held_out_in_turn() -> None:
    conditioning = {"text": {"dtype": "float32", "shape": [2]}}
    record = record_of({"_class_name": "DDIMScheduler"}, sample_shape=LATENT, conditioning=conditioning)
    text = {"text": np.arange(4, dtype=np.float32).reshape(2, 2)}
    prompts = Conditions(text, {"text": -text["text"]}, 5.0)
    held = hold_out(record, Probe({}, {}, {}, prompts), SECTION, BATCH)
    assert held.conditions.scale == 5.0
    assert held.conditions.positive["text"][:, 0].tolist() == [0, 2, 0, 2, 0]
    assert held.conditions.negative is not None
    np.testing.assert_array_equal(held.conditions.negative["text"], -held.conditions.positive["text"])
