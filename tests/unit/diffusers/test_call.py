"""Every argument of a pipeline's call reaches the engine or is refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gacq_deploy.backends.base import TensorInfo
from gacq_deploy.diffusers.call import Call, CallReader
from gacq_deploy.diffusers.faces import FACES
from gacq_deploy.errors import UsageError

STATE = (4, 8, 8)
STATES = (
    TensorInfo("sample", "float32", (None, *STATE)),
    TensorInfo("timestep", "int64", (None,)),
)
LABELS = (*STATES, TensorInfo("class_labels", "int64", (None,)))
TEXT = (*STATES, TensorInfo("encoder_hidden_states", "float32", (None, 77, 6)))
SDXL = (
    *TEXT,
    TensorInfo("text_embeds", "float32", (None, 5)),
    TensorInfo("time_ids", "float32", (None, 6)),
)
PROMPT = torch.ones(2, 77, 6)


def reader(family: str, inputs: tuple[TensorInfo, ...]) -> CallReader:
    tables = {"class_labels": 11} if inputs is LABELS else {}
    return CallReader(FACES[family].signature(), inputs, tables)


def read(family: str, inputs: tuple[TensorInfo, ...], *args: Any, **kwargs: Any) -> Call:
    return reader(family, inputs).read(args, kwargs)


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
    ("timestep", "told"),
    [
        (7.5, "7.500 is not whole"),
        (torch.tensor([1.0, 2.25]), "2.250 is not whole"),
        (float("nan"), "nan is not whole"),
        (torch.tensor([1, 2, 3]), r"\[3\] for 2 states"),
        (torch.tensor([[1, 2]]), r"\[1, 2\] for 2 states"),
        (None, "lacks timestep"),
    ],
)
def test_a_timestep_that_the_engine_cannot_take_is_refused(timestep: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told):
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
    assert set(feeds) == {info.name for info in SDXL}
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
    ("inputs", "kwargs", "told"),
    [
        (TEXT, {"encoder_hidden_states": None}, "lacks encoder_hidden_states"),
        (SDXL, {"encoder_hidden_states": PROMPT}, "lacks text_embeds, time_ids"),
        (TEXT, {"encoder_hidden_states": PROMPT[:1]}, r"\[1, 77, 6\] for 2 states"),
        (TEXT, {"encoder_hidden_states": torch.tensor(1.0)}, r"\[\] for 2 states"),
    ],
)
def test_conditioning_that_does_not_fit_is_refused(
    inputs: tuple[TensorInfo, ...], kwargs: dict[str, Any], told: str
) -> None:
    with pytest.raises(UsageError, match=told):
        read("UNet2DConditionModel", inputs, states(), 3, **kwargs)


@pytest.mark.parametrize("labels", [torch.tensor(10), torch.tensor([10]), torch.tensor([10, 10]), 10])
def test_one_label_serves_every_row(labels: Any) -> None:
    feeds = read("DiTTransformer2DModel", LABELS, states(), timestep=3, class_labels=labels).feeds
    assert feeds["class_labels"].tolist() == [10, 10]


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (torch.tensor([1, 11]), "Label 11"),
        (torch.tensor([-1, 1]), "Label -1"),
        (torch.tensor([0.5, 1.0]), "whole numbers"),
        (torch.tensor([1, 2, 3]), r"\[3\] for 2 states"),
    ],
)
def test_labels_without_a_class_are_refused(labels: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        read("UNet2DModel", LABELS, states(), 3, class_labels=labels)


@pytest.mark.parametrize(
    ("state", "told"),
    [
        (torch.zeros(0, *STATE), r"\[0, 4, 8, 8\]"),
        (torch.tensor(1.0), r"\[\]"),
        (np.zeros((2, *STATE)), "ndarray"),
        (torch.zeros(2, *STATE, requires_grad=True), "gradients"),
    ],
    ids=["empty", "scalar", "array", "gradients"],
)
def test_a_state_that_is_none_is_refused(state: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        read("UNet2DModel", STATES, state, 3)


def test_a_call_without_a_state_is_refused() -> None:
    with pytest.raises(UsageError, match="sample"):
        read("UNet2DModel", STATES)
