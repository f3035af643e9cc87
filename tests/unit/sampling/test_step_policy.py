from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gacq_deploy.artifact.artifact import CalibrationArtifact
from gacq_deploy.artifact.call import CallRecord, StateRecord, TimestepRecord
from gacq_deploy.errors import ArtifactError, UsageError
from gacq_deploy.recipe.sections import StepPolicySection, Where
from gacq_deploy.sampling.flow import FlowSampler
from gacq_deploy.sampling.step_policy import StepPolicy, policy_document, resolve_policy
from tests.support.artifacts.probes import curve_probe
from tests.support.artifacts.samplers import ddim
from tests.support.models.tiny import tiny_artifact, tiny_denoiser

PLACES: tuple[Where, ...] = ("worst", "first", "last", "both")
BARE = tiny_artifact(tiny_denoiser(), probe=False)
ARTIFACT = replace(BARE, probe=curve_probe({950: 0.01, 500: 0.02, 0: 0.1}))
places = st.sampled_from(PLACES)
trajectories = st.integers(1, 60).map(
    lambda steps: tuple(int(t) for t in ddim(BARE.model.scheduler, steps).timesteps)
)


def _resolve(
    count: int, where: Where, timesteps: tuple[int, ...], artifact: CalibrationArtifact = ARTIFACT
) -> StepPolicy:
    return resolve_policy(StepPolicySection(float_steps=count, where=where), timesteps, artifact)


@given(trajectories, places)
def test_none_is_all_int8_and_all_is_all_float(timesteps: tuple[int, ...], where: Where) -> None:
    grid = np.array(timesteps)
    assert not _resolve(0, where, timesteps).choose(grid).any()
    whole = _resolve(len(timesteps), where, timesteps)
    assert whole.choose(grid).all()
    assert whole.share == 1
    assert whole.float_timesteps == timesteps


@given(trajectories, places, st.data())
def test_more_float_steps_hold_the_fewer(
    timesteps: tuple[int, ...], where: Where, data: st.DataObject
) -> None:
    more = data.draw(st.integers(0, len(timesteps)))
    fewer = data.draw(st.integers(0, more))
    large, small = (_resolve(k, where, timesteps) for k in (more, fewer))
    assert set(small.float_timesteps) <= set(large.float_timesteps)
    assert len(large.float_timesteps) == more


@given(trajectories, places, st.data(), st.lists(st.integers(0, 999), min_size=1, max_size=20))
def test_a_row_is_chosen_by_its_own_timestep_alone(
    timesteps: tuple[int, ...], where: Where, data: st.DataObject, asked: list[int]
) -> None:
    policy = _resolve(data.draw(st.integers(0, len(timesteps))), where, timesteps)
    together = policy.choose(np.array(asked))
    assert together.tolist() == [bool(policy.choose(np.array([t]))[0]) for t in asked]
    for timestep, chosen in zip(asked, together.tolist(), strict=True):
        owner = min((t for t in timesteps if t >= timestep), default=timesteps[0])
        assert chosen == (owner in policy.float_timesteps)


def test_the_ends_are_the_ends() -> None:
    timesteps = (900, 700, 500, 300, 100)
    assert _resolve(2, "first", timesteps).float_timesteps == (900, 700)
    assert _resolve(2, "last", timesteps).float_timesteps == (300, 100)
    assert _resolve(3, "both", timesteps).float_timesteps == (900, 700, 100)


def test_the_worst_steps_move_the_image_most() -> None:
    timesteps = tuple(int(t) for t in ddim(BARE.model.scheduler, 20).timesteps)
    flat = replace(BARE, probe=curve_probe({950: 0.1, 0: 0.1}))
    assert _resolve(2, "worst", timesteps, flat).float_timesteps == (950, 900)
    steep = replace(BARE, probe=curve_probe({950: 0.001, 450: 0.001, 400: 0.5, 350: 0.001, 0: 0.001}))
    assert _resolve(1, "worst", timesteps, steep).float_timesteps == (400,)


def test_listed_steps_are_taken_as_they_are() -> None:
    policy = resolve_policy(StepPolicySection(steps=(3, 0)), (900, 700, 500, 300), BARE)
    assert policy.float_timesteps == (900, 300)
    assert policy.share == 0.5
    assert "2 of 4 steps in float (as listed: 900 300)" in policy.describe()


def test_a_timestep_that_a_sampler_calls_twice_is_one_step() -> None:
    policy = _resolve(2, "first", (900, 600, 600, 300, 300))
    assert policy.timesteps == (900, 600, 300)
    assert policy.choose(np.array([900, 600, 600, 300, 300])).tolist() == [True, True, True, False, False]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (StepPolicySection(float_steps=4), "4 float steps were asked for, the sampler has 3"),
        (StepPolicySection(steps=(1, 3)), "Step 3 was asked for, the sampler has 3"),
    ],
)
def test_more_than_the_sampler_has_is_refused(asked: StepPolicySection, message: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        resolve_policy(asked, (900, 600, 300), ARTIFACT)
    assert raised.value.hint.startswith("Choose 0 to ")


def test_only_the_worst_need_a_probe() -> None:
    for where in ("first", "last", "both"):
        assert _resolve(1, where, (900, 600, 300), BARE).share == pytest.approx(1 / 3)
    assert _resolve(0, "worst", (900, 600, 300), BARE).share == 0
    with pytest.raises(ArtifactError, match="probe"):
        _resolve(1, "worst", (900, 600, 300), BARE)


def test_a_policy_is_recorded_with_what_was_asked_and_what_it_came_to() -> None:
    assert policy_document(None) is None
    document = json.loads(json.dumps(policy_document(_resolve(1, "last", (900, 600, 300)))))
    assert document == {
        "asked": {"float_steps": 1, "where": "last", "steps": []},
        "timesteps": [900, 600, 300],
        "float_timesteps": [300],
        "float_share": pytest.approx(1 / 3),
    }
    assert StepPolicySection.model_validate(document["asked"]) == StepPolicySection(
        float_steps=1, where="last"
    )


@given(st.integers(1, 60), st.sampled_from([1.0, 0.001]), st.data())
def test_a_row_is_chosen_by_what_the_network_is_told(steps: int, scale: float, data: st.DataObject) -> None:
    flow = {"shift": 3.0, "use_dynamic_shifting": True, "mu": 1.15}
    sampler = FlowSampler.from_config(flow, steps, timestep_scale=scale)
    chosen = data.draw(st.sets(st.integers(0, steps - 1)))
    asked = StepPolicySection(steps=tuple(sorted(chosen)))
    policy = resolve_policy(asked, sampler.timesteps, BARE, model_timesteps=sampler.model_timesteps)
    assert policy.timesteps == tuple(sampler.timesteps.tolist())
    np.testing.assert_array_equal(
        policy.choose(sampler.model_timesteps), [step in chosen for step in range(steps)]
    )


def test_fractional_timesteps_with_one_key_are_one_step() -> None:
    fed = np.array([900.4, 600.4, 599.6, 10.0], np.float32)
    policy = resolve_policy(
        StepPolicySection(float_steps=2, where="first"), (900, 600, 600, 10), BARE, model_timesteps=fed
    )
    assert policy.timesteps == (900, 600, 10)
    assert policy.choose(fed).tolist() == [True, True, True, False]
    assert policy.choose(np.array([700.0, 599.7], np.float32)).tolist() == [True, True]


def test_the_worst_steps_of_a_flow_are_found_by_its_own_probe() -> None:
    probe = curve_probe({1000: 0.001, 750: 0.5, 250: 0.001})
    fed = (probe.inputs["timestep"] * 0.001).astype(np.float32)
    call = CallRecord(
        state=StateRecord(shape=(1, 4, 4)), timestep=TimestepRecord(dtype="float32", scale=0.001)
    )
    flow = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
    model = BARE.model.model_copy(update={"scheduler": flow, "call": call})
    artifact = replace(BARE, model=model, probe=replace(probe, inputs={**probe.inputs, "timestep": fed}))
    policy = resolve_policy(StepPolicySection(float_steps=1), (1000, 750, 500, 250), artifact)
    assert policy.float_timesteps == (750,)
