"""Samples are float trajectories: the same whatever the batch size, balanced, split by trajectory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gacq_deploy.errors import CalibrationError
from gacq_deploy.models.base import Denoiser
from gacq_deploy.models.source import load_float_denoiser
from gacq_deploy.models.trajectories.drawn import collect_samples
from gacq_deploy.recipe.sections import ModelSection, SamplesSection
from gacq_deploy.samples.calibration_set import CalibrationSet, load_samples
from tests.support.models.tiny import tiny_denoiser


@pytest.fixture(scope="module")
def digits() -> Denoiser:
    return load_float_denoiser(ModelSection(source="builtin:digits8", classes=10))


def collect(denoiser: Denoiser, path: Path, **changes: object) -> CalibrationSet:
    section = SamplesSection.model_validate({"trajectories": 20, "steps": 10} | changes)
    collect_samples(denoiser, section, path)
    return load_samples(path)


def test_batch_size_chooses_nothing(digits: Denoiser, tmp_path: Path) -> None:
    small, large = (collect(digits, tmp_path / f"{b}", batch=b) for b in (8, 32))
    for name in ("timesteps", "trajectory", "step", "validation"):
        np.testing.assert_array_equal(getattr(small, name), getattr(large, name))
    np.testing.assert_array_equal(small.conditioning["class_labels"], large.conditioning["class_labels"])
    noisiest = small.step == 0
    np.testing.assert_array_equal(small.latents[noisiest], large.latents[noisiest])
    np.testing.assert_allclose(small.latents, large.latents, rtol=0, atol=1e-5)
    for samples in (small, large):
        # of its own states: the model makes ten times as much of a difference between two states at the last timestep
        states, labels = samples.latents, samples.conditioning["class_labels"]
        with torch.no_grad():
            output = digits(
                torch.from_numpy(states),
                torch.from_numpy(samples.timesteps),
                {"class_labels": torch.from_numpy(labels)},
            )
        np.testing.assert_allclose(samples.targets, output.numpy(), rtol=0, atol=1e-5)


def test_equal_seeds_give_equal_bytes_and_another_seed_another_set(digits: Denoiser, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        collect(digits, tmp_path / name, seed=seed)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() != (tmp_path / "c").read_bytes()


def test_steps_are_stratified_and_classes_balanced(digits: Denoiser, tmp_path: Path) -> None:
    samples = collect(digits, tmp_path / "s", keep_every=2)
    assert len(samples) == 20 * 5
    _, counts = np.unique(samples.timesteps, return_counts=True)
    assert counts.tolist() == [20] * 5
    labels = samples.conditioning["class_labels"][samples.step == 0]
    assert np.bincount(labels).tolist() == [2] * 10
    assert len(np.unique(samples.held_out.trajectory)) == 1


def test_targets_are_the_models_own_output_and_states_follow_ddim(digits: Denoiser, tmp_path: Path) -> None:
    from diffusers import DDIMScheduler

    samples = collect(digits, tmp_path / "s")
    one = samples.rows(np.flatnonzero(samples.trajectory == 3))
    label = torch.from_numpy(one.conditioning["class_labels"])
    with torch.no_grad():
        output = digits(
            torch.from_numpy(one.latents), torch.from_numpy(one.timesteps), {"class_labels": label}
        )
    np.testing.assert_allclose(output.numpy(), one.targets, atol=1e-5)
    scheduler = DDIMScheduler.from_config(digits.record.scheduler)
    scheduler.set_timesteps(10)
    for k in range(9):
        target, state = torch.from_numpy(one.targets[k]), torch.from_numpy(one.latents[k])
        after = scheduler.step(target, int(one.timesteps[k]), state).prev_sample
        np.testing.assert_allclose(after.numpy(), one.latents[k + 1], atol=1e-5)


def test_a_float_model_that_is_not_finite_stops_the_collection(tmp_path: Path) -> None:
    denoiser = tiny_denoiser()
    denoiser.module.get_submodule("conv_out").get_parameter("bias").data[0] = float("inf")
    with pytest.raises(CalibrationError, match="not finite at timestep"):
        collect(denoiser, tmp_path / "s")
    assert list(tmp_path.iterdir()) == []
