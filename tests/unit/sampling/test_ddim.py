from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from gacq_deploy.errors import ModelError, UsageError
from gacq_deploy.sampling.ddim import initial_noise, parse_scheduler
from tests.support.artifacts.samplers import ddim

SHAPE = (2, 3, 4, 4)


def _reference(config: dict[str, Any], steps: int) -> DDIMScheduler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        scheduler = DDIMScheduler.from_config(config)
    scheduler.set_timesteps(steps)
    return scheduler


def _compare(config: dict[str, Any], steps: int, eta: float, seed: int = 0) -> None:
    """Walk one trajectory with random model outputs through both, feeding each the reference's state.

    At eta = 1 diffusers subtracts two almost equal float32 numbers: its result is rounding noise (1e-4), so
    its code is run in float64 there, from the same float32 alphas.
    """
    reference = _reference(config, steps)
    dtype = torch.float64 if eta == 1.0 else torch.float32
    sampler = ddim(config, steps, eta)
    np.testing.assert_array_equal(sampler.timesteps, reference.timesteps.numpy())
    np.testing.assert_array_equal(sampler.alphas, reference.alphas_cumprod.numpy())
    reference.alphas_cumprod = reference.alphas_cumprod.to(dtype)
    reference.final_alpha_cumprod = reference.final_alpha_cumprod.to(dtype)
    rng = np.random.default_rng(seed)
    state = torch.from_numpy(rng.standard_normal(SHAPE, dtype=np.float32)).to(dtype)
    for index, timestep in enumerate(reference.timesteps):
        output = rng.standard_normal(SHAPE, dtype=np.float32)
        noise = rng.standard_normal(SHAPE, dtype=np.float32)
        ours = sampler.step(output, index, state.float().numpy(), noise)
        state = reference.step(
            torch.from_numpy(output).to(dtype),
            timestep,
            state,
            eta=eta,
            variance_noise=torch.from_numpy(noise).to(dtype) if eta > 0 else None,
        ).prev_sample
        assert ours.dtype == np.float32
        # unclipped states reach the hundreds, where float32 itself is coarser than 1e-5
        scale = max(1.0, float(state.abs().max()))
        np.testing.assert_allclose(ours / scale, state.numpy() / scale, rtol=0, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    data=st.fixed_dictionaries(
        {
            "beta_schedule": st.sampled_from(["linear", "scaled_linear", "squaredcos_cap_v2"]),
            "prediction_type": st.sampled_from(["epsilon", "v_prediction", "sample"]),
            "timestep_spacing": st.sampled_from(["leading", "trailing", "linspace"]),
            "num_train_timesteps": st.integers(20, 1000),
            "clip_sample": st.booleans(),
            "clip_sample_range": st.sampled_from([0.5, 1.0, 2.5]),
            "set_alpha_to_one": st.booleans(),
            "thresholding": st.booleans(),
            "dynamic_thresholding_ratio": st.sampled_from([0.5, 0.995]),
            "sample_max_value": st.sampled_from([1.0, 3.0]),
            "beta_start": st.sampled_from([1e-4, 8.5e-4]),
            "beta_end": st.sampled_from([0.012, 0.02]),
        }
    ),
    steps=st.integers(1, 20),
    eta=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 100),
)
def test_equals_diffusers(data: dict[str, Any], steps: int, eta: float, seed: int) -> None:
    _compare(data, steps, eta, seed)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_equals_diffusers_at_zero_terminal_snr(prediction_type: str, beta_schedule: str) -> None:
    config = {
        "rescale_betas_zero_snr": True,
        "prediction_type": prediction_type,
        "beta_schedule": beta_schedule,
        "timestep_spacing": "trailing",
        "clip_sample": False,
    }
    _compare(config, 10, 0.0)


@pytest.mark.parametrize("steps", [1, 7, 20, 50, 333])
def test_equals_diffusers_with_offset_and_any_number_of_steps(steps: int) -> None:
    _compare({"steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False}, steps, 0.0)


def test_equals_diffusers_with_trained_betas() -> None:
    betas = np.linspace(1e-3, 0.05, 40).tolist()
    _compare({"trained_betas": betas, "num_train_timesteps": 40}, 8, 1.0)


@pytest.mark.parametrize(
    "scheduler",
    [
        DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        DDPMScheduler(timestep_spacing="trailing", prediction_type="v_prediction", clip_sample_range=2.0),
        DDPMScheduler(
            rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing"
        ),
        PNDMScheduler(beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1),
        EulerDiscreteScheduler(beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1),
        DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", use_karras_sigmas=True),
        UniPCMultistepScheduler(),
    ],
    ids=lambda s: type(s).__name__,
)
def test_converts_other_schedulers_as_diffusers_does(scheduler: Any) -> None:
    """The live configuration names the defaults it did not choose; those must not carry over."""
    _compare(dict(scheduler.config), 12, 0.0)


def test_defaults_of_the_other_class_do_not_carry_over() -> None:
    live = dict(UniPCMultistepScheduler().config)
    assert live["timestep_spacing"] == "linspace"
    assert parse_scheduler(live).timestep_spacing == "leading"
    assert parse_scheduler({**live, "_use_default_values": []}).timestep_spacing == "linspace"


@pytest.mark.parametrize("kind", ["PNDMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_a_class_that_never_clips_does_not_begin_to(kind: str) -> None:
    assert not parse_scheduler({"_class_name": kind}).clip_sample
    assert parse_scheduler({"_class_name": kind, "clip_sample": True}).clip_sample
    assert parse_scheduler({"_class_name": "DDPMScheduler"}).clip_sample
    assert parse_scheduler({}).clip_sample


def test_a_saved_configuration_is_read_alike(tmp_path: Any) -> None:
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample_range=1.5)
    scheduler.save_pretrained(tmp_path)
    saved, _ = DDPMScheduler.load_config(tmp_path, return_unused_kwargs=True)
    _compare(dict(saved), 10, 0.0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "FlowMatchEulerDiscreteScheduler"),
        ({"_class_name": "EDMEulerScheduler"}, "EDMEulerScheduler"),
        ({"use_flow_sigmas": True, "_class_name": "UniPCMultistepScheduler"}, "UniPCMultistepScheduler"),
        ({"prediction_type": "flow_prediction"}, "flow_prediction"),
        ({"timestep_spacing": "karras"}, "karras"),
        ({"num_train_timesteps": 0}, "num_train_timesteps"),
        ({"trained_betas": [0.1, 0.2]}, "holds 0 cumulative alphas, num_train_timesteps is 1000"),
        ({"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, "zero signal"),
    ],
)
def test_refuses_a_process_it_cannot_follow(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        ddim(config, 10)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("steps", "eta", "config"),
    [
        (0, 0.0, {}),
        (-1, 0.0, {}),
        (1001, 0.0, {}),
        (10, -0.1, {}),
        (10, 1.1, {}),
        (1000, 0.0, {"steps_offset": 1}),
    ],
)
def test_refuses_steps_and_eta_out_of_range(steps: int, eta: float, config: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        ddim(config, steps, eta)


def test_a_noisy_step_needs_noise() -> None:
    sampler = ddim({}, 10, eta=0.5)
    zeros = np.zeros(SHAPE, np.float32)
    with pytest.raises(UsageError, match="needs noise"):
        sampler.step(zeros, 0, zeros)


def test_noise_depends_on_its_seed_alone() -> None:
    together = initial_noise([3, 9, 4], (2, 5))
    np.testing.assert_array_equal(together[1:2], initial_noise([9], (2, 5)))
    assert together.dtype == np.float32
    assert abs(float(initial_noise(range(50), (100,)).std()) - 1) < 0.05
    assert len({row.tobytes() for row in initial_noise(range(50), (4,))}) == 50


def test_added_noise_depends_on_its_seed_alone() -> None:
    sampler = ddim({}, 4, eta=1.0)
    rng = np.random.default_rng(0)
    state, output = (rng.standard_normal((3, 2, 4), dtype=np.float32) for _ in range(2))
    together = sampler.begin([7, 8, 9])
    alone = sampler.begin([8])
    for index in range(2):
        all_rows = together.step(output, index, state)
        np.testing.assert_array_equal(all_rows[1:2], alone.step(output[1:2], index, state[1:2]))


@pytest.mark.parametrize("seed", [-1, 1 << 63])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(UsageError, match="out of range"):
        initial_noise([0, seed], (1,))
