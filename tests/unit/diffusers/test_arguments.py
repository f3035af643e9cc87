"""Every argument of a pipeline's call reaches the engine or is refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gacq_deploy.artifact.call import ArgumentRecord, CallRecord, StateRecord, TimestepRecord
from gacq_deploy.backends.base import TensorInfo
from gacq_deploy.diffusers.arguments import Call, CallReader, signature_of
from gacq_deploy.diffusers.model_facade import find_class
from gacq_deploy.errors import ModelError, UsageError

STATE = (4, 8, 8)
Arguments = tuple[ArgumentRecord, ...]


def argument(name: str, dtype: Any, *shape: int, inside: str | None = None, **more: Any) -> ArgumentRecord:
    path = (name,) if inside is None else (inside, name)
    return ArgumentRecord(name=name, path=path, dtype=dtype, shape=shape, **more)


STATES: Arguments = ()
LABELS = (argument("class_labels", "int64"),)
TEXT = (argument("encoder_hidden_states", "float32", 77, 6),)
SDXL = (
    *TEXT,
    argument("text_embeds", "float32", 5, inside="added_cond_kwargs"),
    argument("time_ids", "float32", 6, inside="added_cond_kwargs"),
)
PROMPT = torch.ones(2, 77, 6)


def record(family: str, arguments: Arguments, **more: Any) -> CallRecord:
    state = StateRecord(path=("sample" if "UNet" in family else "hidden_states",), shape=STATE)
    return CallRecord(state=state, arguments=arguments, **more)


def reader_of(call: CallRecord, family: str = "") -> CallReader:
    timestep = TensorInfo("timestep", call.timestep.dtype, (None,))
    inputs = (
        TensorInfo("sample", "float32", (None, *call.state.shape)),
        timestep,
        *(TensorInfo(a.name, a.dtype, (None, *a.shape)) for a in call.arguments),
    )
    tables = {"class_labels": 11} if call.arguments == LABELS else {}
    return CallReader(signature_of(call, find_class(family)), call, inputs, tables)


def read(family: str, arguments: Arguments, *args: Any, **kwargs: Any) -> Call:
    return reader_of(record(family, arguments), family).read(args, kwargs)


def states(rows: int = 2) -> torch.Tensor:
    return torch.arange(rows * 256, dtype=torch.float32).reshape(rows, *STATE)


@pytest.mark.parametrize(
    "timestep",
    [
        7,
        7.0,
        np.int32(7),
        np.float64(7),
        torch.tensor(7),
        torch.tensor(7.0),
        torch.tensor([7]),
        torch.tensor([7.0, 7.0, 7.0], dtype=torch.float64),
        torch.tensor([7, 7, 7], dtype=torch.int32),
        torch.tensor(7.0, dtype=torch.bfloat16),
    ],
    ids=repr,
)
def test_any_form_of_timestep_becomes_one_a_row(timestep: Any) -> None:
    fed = read("UNet2DModel", STATES, states(3), timestep).feeds["timestep"]
    assert fed.dtype == np.int64
    assert fed.tolist() == [7, 7, 7]


@given(st.lists(st.integers(0, 999), min_size=1, max_size=6))
def test_every_row_keeps_its_own_timestep(timesteps: list[int]) -> None:
    rows = len(timesteps)
    fed = read("UNet2DModel", STATES, states(rows), torch.tensor(timesteps)).feeds["timestep"]
    assert fed.tolist() == timesteps


@pytest.mark.parametrize(
    ("timestep", "message"),
    [
        (7.5, "7.500 is not whole"),
        (torch.tensor([1.0, 2.25]), "2.250 is not whole"),
        (float("nan"), "nan is not whole"),
        (torch.tensor([1, 2, 3]), r"\[3\] for 2 states"),
        (torch.tensor([[1, 2]]), r"\[1, 2\] for 2 states"),
        (None, "lacks timestep"),
    ],
)
def test_a_timestep_that_the_engine_cannot_take_is_refused(timestep: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read("DiTTransformer2DModel", STATES, states(), timestep)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_states_of_any_float_type_are_fed_as_the_engine_takes_them(dtype: torch.dtype) -> None:
    call = read("UNet2DModel", STATES, torch.ones(2, *STATE, dtype=dtype), 1, return_dict=False)
    assert call.feeds["sample"].dtype == np.float32
    assert call.sample.dtype == dtype
    assert not call.return_dict


def test_text_and_what_sdxl_adds_are_found_by_name() -> None:
    added = {"text_embeds": torch.ones(2, 5, dtype=torch.float16), "time_ids": torch.zeros(2, 6)}
    feeds = read("UNet2DConditionModel", SDXL, states(), 3, PROMPT, added_cond_kwargs=added).feeds
    assert set(feeds) == {"sample", "timestep", *(a.name for a in SDXL)}
    assert feeds["text_embeds"].dtype == np.float32


def test_what_a_pipeline_passes_without_saying_anything_is_no_request() -> None:
    quiet = {
        "timestep_cond": None,
        "cross_attention_kwargs": {},
        "added_cond_kwargs": None,
        "down_block_additional_residuals": None,
    }
    assert set(read("UNet2DConditionModel", TEXT, states(), 3, PROMPT, **quiet).feeds) == {
        "sample", "timestep", "encoder_hidden_states"
    }  # fmt: skip


@pytest.mark.parametrize(
    "more",
    [
        {"down_block_additional_residuals": (torch.zeros(1),)},
        {"mid_block_additional_residual": torch.zeros(1)},
        {"down_intrablock_additional_residuals": [torch.zeros(1)]},
        {"attention_mask": torch.ones(2, 77)},
        {"encoder_attention_mask": torch.ones(2, 77)},
        {"cross_attention_kwargs": {"scale": 0.5}},
        {"timestep_cond": torch.ones(2, 4)},
        {"class_labels": torch.zeros(2, dtype=torch.int64)},
        {"no_such_argument": 1},
    ],
    ids=lambda more: next(iter(more)),
)
def test_what_the_engine_cannot_honour_is_refused_by_name(more: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(more))):
        read("UNet2DConditionModel", TEXT, states(), 3, PROMPT, **more)


def test_an_ip_adapter_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="image_embeds"):
        read("UNet2DConditionModel", TEXT, states(), 3, PROMPT, added_cond_kwargs={"image_embeds": [PROMPT]})


@pytest.mark.parametrize(
    ("inputs", "kwargs", "message"),
    [
        (TEXT, {"encoder_hidden_states": None}, "lacks encoder_hidden_states"),
        (
            SDXL,
            {"encoder_hidden_states": PROMPT},
            r"lacks added_cond_kwargs.text_embeds, added_cond_kwargs.time_ids",
        ),
        (TEXT, {"encoder_hidden_states": PROMPT[:1]}, r"\[1, 77, 6\] for 2 states"),
        (TEXT, {"encoder_hidden_states": torch.tensor(1.0)}, r"\[\] for 2 states"),
    ],
)
def test_conditioning_that_does_not_fit_is_refused(
    inputs: Arguments, kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        read("UNet2DConditionModel", inputs, states(), 3, **kwargs)


@pytest.mark.parametrize("labels", [torch.tensor(10), torch.tensor([10]), torch.tensor([10, 10]), 10])
def test_one_label_serves_every_row(labels: Any) -> None:
    feeds = read("DiTTransformer2DModel", LABELS, states(), timestep=3, class_labels=labels).feeds
    assert feeds["class_labels"].tolist() == [10, 10]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([1, 11]), "Label 11"),
        (torch.tensor([-1, 1]), "Label -1"),
        (torch.tensor([0.5, 1.0]), "whole numbers"),
        (torch.tensor([1, 2, 3]), r"\[3\] for 2 states"),
    ],
)
def test_labels_without_a_class_are_refused(labels: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read("UNet2DModel", LABELS, states(), 3, class_labels=labels)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (torch.zeros(0, *STATE), r"\[0, 4, 8, 8\]"),
        (torch.tensor(1.0), r"\[\]"),
        (np.zeros((2, *STATE)), "ndarray"),
        (torch.zeros(2, *STATE, requires_grad=True), "gradients"),
    ],
    ids=["empty", "scalar", "array", "gradients"],
)
def test_a_state_that_is_none_is_refused(state: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read("UNet2DModel", STATES, state, 3)


def test_a_call_without_a_state_is_refused() -> None:
    with pytest.raises(UsageError, match="sample"):
        read("UNet2DModel", STATES)


FLUX = (
    TEXT[0],
    argument("pooled_projections", "float32", 5),
    argument("img_ids", "float32", 16, 3, shared=True),
    argument("guidance", "float32"),
)
FLUX_STEP = TimestepRecord(dtype="float32", scale=0.001)
IDS = torch.arange(48.0).reshape(16, 3)


def read_flux(timestep: Any = 0.5, **changes: Any) -> Call:
    call = CallRecord(
        state=StateRecord(path=("hidden_states",), shape=(16, 64)),
        timestep=FLUX_STEP,
        arguments=FLUX,
        constants={"joint_attention_kwargs": None, "txt_ids": None, "return_dict": False},
    )
    given = {
        "hidden_states": torch.ones(2, 16, 64),
        "timestep": timestep,
        "encoder_hidden_states": PROMPT,
        "pooled_projections": torch.ones(2, 5),
        "img_ids": IDS,
        "guidance": torch.tensor([3.5]).expand(2),
    }
    return reader_of(call, "FluxTransformer2DModel").read((), given | changes)


@pytest.mark.parametrize("ids", [IDS, IDS[None], IDS[None].expand(2, -1, -1)], ids=["plain", "one", "rows"])
def test_what_all_rows_share_is_given_to_each(ids: torch.Tensor) -> None:
    feeds = read_flux(img_ids=ids).feeds
    assert feeds["sample"].shape == (2, 16, 64)
    np.testing.assert_array_equal(feeds["img_ids"], np.stack([IDS.numpy()] * 2))


def test_what_should_be_shared_may_not_differ() -> None:
    with pytest.raises(UsageError, match="'img_ids' differs from row to row"):
        read_flux(img_ids=torch.stack([IDS, IDS + 1]))


@pytest.mark.parametrize(
    "timestep",
    [0.7615, torch.tensor(0.7615), torch.tensor([0.7615]), torch.tensor([0.7615, 0.7615])],
    ids=repr,
)
def test_a_flow_is_told_its_timestep_as_it_is(timestep: Any) -> None:
    fed = read_flux(timestep).feeds["timestep"]
    assert fed.dtype == np.float32
    assert fed.tolist() == [np.float32(0.7615)] * 2


@pytest.mark.parametrize("guidance", [4.0, torch.tensor(4.0), torch.tensor([4.0]), torch.tensor([4.0, 4.0])])
def test_one_guidance_serves_every_row(guidance: Any) -> None:
    assert read_flux(guidance=guidance).feeds["guidance"].tolist() == [4.0, 4.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guidance": None}, "lacks guidance"),
        ({"controlnet_block_samples": [PROMPT]}, r"controlnet_block_samples\[0\]"),
        ({"controlnet_blocks_repeat": True}, "controlnet_blocks_repeat"),
        ({"joint_attention_kwargs": {"scale": 0.5}}, "joint_attention_kwargs.scale"),
        ({"joint_attention_kwargs": {"ip_adapter_image_embeds": [PROMPT]}}, "ip_adapter_image_embeds"),
        ({"txt_ids": IDS}, "txt_ids"),
    ],
)
def test_what_was_not_calibrated_with_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_flux(**changes)


@pytest.mark.parametrize("quiet", [None, {}, {"scale": 1.0}], ids=repr)
def test_an_attention_scale_of_one_says_nothing(quiet: Any) -> None:
    assert set(read_flux(joint_attention_kwargs=quiet).feeds) == {
        "sample",
        "timestep",
        *(a.name for a in FLUX),
    }


def test_skipped_layers_are_refused() -> None:
    call = record("SD3Transformer2DModel", TEXT)
    with pytest.raises(UsageError, match=r"skip_layers\[0\]"):
        reader_of(call, "SD3Transformer2DModel").read(
            (states(), PROMPT), {"timestep": torch.tensor([3]), "skip_layers": [1]}
        )


def custom(**constants: Any) -> CallReader:
    """Of a class that diffusers does not have."""
    return reader_of(record("UNet", (argument("style", "bool", 3, inside="extra"),), constants=constants))


def test_an_unknown_class_is_called_as_it_was_recorded() -> None:
    call = custom(frames=5, extra={"gain": 2.0}).read(
        (states(), 7), {"extra": {"style": torch.ones(2, 3, dtype=torch.bool), "gain": 2.0}, "frames": 5}
    )
    assert call.return_dict
    assert call.feeds["style"].dtype == np.bool_


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"frames": 6}, r"frames \(calibrated with 5\)"),
        ({"extra": {"style": torch.ones(2, 3)}}, "whole numbers"),
        ({"extra": {"style": torch.full((2, 3), 2)}}, "other numbers than 0 and 1"),
        ({"extra": {}}, "lacks extra.style"),
        ({"other": 1}, "other"),
    ],
)
def test_constants_stay_as_they_were_recorded(given: dict[str, Any], message: str) -> None:
    whole = {"extra": {"style": torch.ones(2, 3, dtype=torch.bool)}, "frames": 5} | given
    with pytest.raises(UsageError, match=message):
        custom(frames=5).read((states(), 7), whole)


def test_a_recorded_constant_may_not_be_left_out() -> None:
    given = {"extra": {"style": torch.ones(2, 3, dtype=torch.bool)}}
    with pytest.raises(UsageError, match=r"lacks extra.gain = 2.0"):
        custom(extra={"gain": 2.0}).read((states(), 7), given)
    assert custom(frames=5).read((states(), 7), given)


def test_an_engine_of_another_call_is_refused() -> None:
    inputs = (TensorInfo("sample", "float32", (None, *STATE)), TensorInfo("timestep", "int64", (None,)))
    call = record("UNet2DModel", LABELS)
    with pytest.raises(ModelError, match="is called with class_labels, sample, timestep"):
        CallReader(signature_of(call, None), call, inputs, {})
