from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gacq_deploy.errors import ModelError, UsageError
from gacq_deploy.sampling.flow import FLOW_CLASS, FlowSampler
from gacq_deploy.sampling.timesteps import training_keys

SPACINGS = (None, "use_karras_sigmas", "use_exponential_sigmas")


def _theirs(config: dict[str, Any], steps: int, mu: float | None, *, sigmas: bool) -> Any:
    scheduler = FlowMatchEulerDiscreteScheduler(**config)
    given_sigmas = np.linspace(1.0, 1 / steps, steps) if sigmas else None
    scheduler.set_timesteps(steps, mu=mu, sigmas=given_sigmas)
    return scheduler


@settings(max_examples=150, deadline=None)
@given(
    total=st.sampled_from([1000, 10]),
    steps=st.integers(1, 60),
    shift=st.floats(0.5, 12),
    mu=st.none() | st.floats(0.1, 3),
    kind=st.sampled_from(["exponential", "linear"]),
    dynamic=st.booleans(),
    terminal=st.none() | st.floats(0.01, 0.3),
    spacing=st.sampled_from(SPACINGS),
    sigmas=st.none() | st.booleans(),
)
def test_its_steps_are_diffusers_bit_for_bit(
    total: int, steps: int, shift: float, mu: float | None, kind: str, dynamic: bool,
    terminal: float | None, spacing: str | None, sigmas: bool | None,
) -> None:  # fmt: skip
    assume(steps <= total and not (dynamic and mu is None) and not (steps == 1 and terminal))
    config: dict[str, Any] = {
        "num_train_timesteps": total, "shift": shift, "use_dynamic_shifting": dynamic,
        "time_shift_type": kind, "shift_terminal": terminal,
    }  # fmt: skip
    if spacing:
        config[spacing] = True
    theirs = _theirs(config, steps, mu, sigmas=(mu is not None) if sigmas is None else sigmas)
    plain = {**dict(theirs.config), "_class_name": FLOW_CLASS, "mu": mu, "pipeline_sigmas": sigmas}
    ours = FlowSampler.from_config(plain, steps)
    np.testing.assert_array_equal(ours.sigmas, theirs.sigmas.numpy())
    np.testing.assert_array_equal(ours.model_timesteps, theirs.timesteps.numpy())
    assert ours.model_timesteps.dtype == np.float32
    assert ours.timesteps.dtype == np.int64
    assert (np.diff(ours.timesteps) < 0).all()
    assert 0 <= ours.timesteps[-1] <= ours.timesteps[0] <= total


@pytest.mark.parametrize("shape", [(6, 4), (4, 5, 3)], ids=["packed", "latents"])
@pytest.mark.parametrize("mu", [None, 0.8])
def test_a_walk_ends_where_diffusers_does(shape: tuple[int, ...], mu: float | None) -> None:
    config: dict[str, Any] = {"shift": 3.0, "use_dynamic_shifting": mu is not None}
    theirs = _theirs(config, 7, mu, sigmas=mu is not None)
    ours = FlowSampler.from_config({**config, "mu": mu}, 7)
    run = ours.begin([1, 2])
    state = run.start(np.random.default_rng(0).standard_normal((2, *shape), np.float32))
    other = torch.from_numpy(state.copy())
    for index, timestep in enumerate(theirs.timesteps):
        seen = run.model_input(state, index)
        state = run.step(np.tanh(seen) * ours.sigmas[index], index, state)
        answer = torch.from_numpy(np.tanh(other.numpy()) * ours.sigmas[index])
        other = theirs.step(answer, timestep, other).prev_sample
    np.testing.assert_array_equal(state, other.numpy())
    assert state.dtype == np.float32


def test_a_network_that_is_told_sigma() -> None:
    config = {"use_dynamic_shifting": True, "mu": 1.15}
    whole = FlowSampler.from_config(config, 28)
    fed = FlowSampler.from_config(config, 28, timestep_scale=0.001)
    # what a pipeline gives: timestep / 1000 in float32
    np.testing.assert_array_equal(fed.model_timesteps, whole.model_timesteps / np.float32(1000))
    np.testing.assert_array_equal(fed.timesteps, whole.timesteps)
    np.testing.assert_array_equal(training_keys(fed.model_timesteps, 0.001), whole.timesteps)


def test_a_network_of_whole_timesteps_is_told_whole_ones_alone() -> None:
    config = {"pipeline_sigmas": True}
    sampler = FlowSampler.from_config(config, 4, timestep_dtype="int64")
    assert sampler.model_timesteps.tolist() == sampler.timesteps.tolist() == [1000, 750, 500, 250]
    with pytest.raises(ModelError, match=r"timestep 666\.667, the model takes whole"):
        FlowSampler.from_config(config, 3, timestep_dtype="int64")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "DDIMScheduler"}, "DDIMScheduler"),
        ({"use_dynamic_shifting": True}, "nothing says by how much"),
        ({"use_dynamic_shifting": True, "time_shift_type": "linear", "mu": -1.0}, "not positive"),
        ({"invert_sigmas": True}, "from image to noise"),
        ({"use_beta_sigmas": True}, "beta distribution"),
        ({"stochastic_sampling": True}, "new noise"),
        ({"use_karras_sigmas": True, "use_exponential_sigmas": True}, "exclude each other"),
        ({"time_shift_type": "cubic"}, "time_shift_type"),
        ({"shift": 0}, "shift = 0"),
        ({"shift_terminal": 1.0}, "shift_terminal"),
        ({"mu": float("nan")}, "mu = nan"),
    ],
)
def test_what_it_cannot_follow_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message) as raised:
        FlowSampler.from_config({"_class_name": FLOW_CLASS, **config}, 4)
    assert raised.value.hint


@pytest.mark.parametrize("steps", [0, 1001])
def test_steps_are_those_of_training(steps: int) -> None:
    with pytest.raises(UsageError, match="1000"):
        FlowSampler.from_config({}, steps)


def test_a_single_step_cannot_end_before_pure_noise() -> None:
    with pytest.raises(UsageError, match=r"shift_terminal is 0\.1"):
        FlowSampler.from_config({"shift_terminal": 0.1}, 1)
    assert FlowSampler.from_config({"shift_terminal": 0.1}, 2).sigmas[1] == np.float32(0.1)


def test_defaults_of_another_class_are_not_this_models() -> None:
    config = {"shift": 7.0, "_use_default_values": ["shift"]}
    np.testing.assert_array_equal(
        FlowSampler.from_config(config, 4).sigmas, FlowSampler.from_config({}, 4).sigmas
    )
