"""Profiles: which shapes an engine takes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gacq_deploy.build_trt.options import ShapeRange
from gacq_deploy.build_trt.profiles import (
    ShapeRequest,
    Span,
    corners,
    derive_profiles,
    input_dims,
    parse_shapes,
    parse_span,
)
from gacq_deploy.errors import UsageError
from tests.support.graphs.onnx_graphs import denoiser_graph

DYNAMIC = {
    "sample": ("batch", 4, "height", "width"),
    "timestep": ("batch",),
    "encoder_hidden_states": ("batch", 77, 8),
}
spans = st.lists(st.integers(1, 64), min_size=3, max_size=3).map(sorted)


def test_the_denoisers_inputs_are_read_from_the_graph() -> None:
    assert input_dims(denoiser_graph()) == {
        "sample": ("batch", 4, 8, 8),
        "timestep": ("batch",),
        "class_labels": ("batch",),
    }


@given(spans, spans, spans)
def test_every_input_gets_the_same_batch_and_the_sample_its_resolution(
    batch: list[int], height: list[int], width: list[int]
) -> None:
    resolution = ":".join(f"{h}x{w}" for h, w in zip(height, width, strict=True))
    request = ShapeRequest((":".join(map(str, batch)),), (resolution,))
    (profile,) = derive_profiles(DYNAMIC, request)
    for position, which in enumerate(("min", "opt", "max")):
        n, h, w = batch[position], height[position], width[position]
        assert getattr(profile["sample"], which) == (n, 4, h, w)
        assert getattr(profile["timestep"], which) == (n,)
        assert getattr(profile["encoder_hidden_states"], which) == (n, 77, 8)


def test_each_batch_with_each_resolution_is_a_profile() -> None:
    profiles = derive_profiles(DYNAMIC, ShapeRequest(("2", "1:8"), ("64", "64x96:128")))
    assert [str(p["sample"]) for p in profiles] == [
        "2x4x64x64",
        "2x4x64x96 : 2x4x128x128 : 2x4x128x128",
        "1x4x64x64 : 8x4x64x64 : 8x4x64x64",
        "1x4x64x96 : 8x4x128x128 : 8x4x128x128",
    ]


def test_a_graph_without_dynamic_dimensions_needs_no_profile() -> None:
    assert derive_profiles({"sample": (2, 4, 8, 8), "timestep": (2,)}, ShapeRequest()) == ()


def test_trtexecs_shapes_decide_the_inputs_they_name() -> None:
    fixed = {which: parse_shapes("tokens:1x9", what="--shapes") for which in ("min", "opt", "max")}
    (profile,) = derive_profiles(
        {"sample": ("batch", 1, 8, 8), "tokens": ("batch", "length")}, ShapeRequest(("2",), (), fixed)
    )
    assert profile["tokens"] == ShapeRange(min=(1, 9), opt=(1, 9), max=(1, 9))
    assert profile["sample"].opt == (1, 1, 8, 8), "the batch is the one that was fixed"


@pytest.mark.parametrize(
    ("text", "span"), [("4", Span(4, 4, 4)), ("1:8", Span(1, 8, 8)), ("1:4:8", Span(1, 4, 8))]
)
def test_spans(text: str, span: Span) -> None:
    assert parse_span(text, what="--batch") == span


@pytest.mark.parametrize("text", ["", "0", "-1", "1:2:3:4", "8:1", "2:1:3", "a", "1.5", "1:", "٣"])
def test_a_malformed_span_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--batch"):
        parse_span(text, what="--batch")


@pytest.mark.parametrize("text", ["", "sample", "sample:", "sample:0x1", ":1", "a:1,a:2", "a:1x"])
def test_malformed_shapes_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--shapes"):
        parse_shapes(text, what="--shapes")


@pytest.mark.parametrize(
    ("inputs", "request_", "message"),
    [
        ({"sample": ("batch", 4, 8, 8)}, ShapeRequest(resolutions=("16x16",)), "fixed at 8x8"),
        (
            {"sample": ("batch", 4, "height", "width")},
            ShapeRequest(),
            "'height' of input 'sample' is dynamic",
        ),
        ({"sample": ("batch", 4, 8, 8)}, ShapeRequest(resolutions=("big",)), "not HxW"),
        ({"sample": ("batch",)}, ShapeRequest(fixed={"min": {"other": (1,)}}), "no input 'other'"),
        ({"sample": ("batch", 4)}, ShapeRequest(fixed={"min": {"sample": (1, 5)}}), "asked for was 1x5"),
        (
            {"sample": ("batch",)},
            ShapeRequest(fixed={"min": {"sample": (4,)}, "opt": {"sample": (2,)}, "max": {"sample": (8,)}}),
            "not min <= opt <= max",
        ),
    ],
)
def test_what_does_not_fit_the_graph_is_refused(inputs: dict, request_: ShapeRequest, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        derive_profiles(inputs, request_)


@pytest.mark.parametrize("resolution", ["64x60", "64:68:128", "64:128:132"])
def test_a_size_between_the_multiples_is_refused(resolution: str) -> None:
    with pytest.raises(UsageError, match="multiples of 8"):
        derive_profiles(DYNAMIC, ShapeRequest(resolutions=(resolution,)), size_multiple=8)
    assert derive_profiles(DYNAMIC, ShapeRequest(resolutions=(resolution,)), size_multiple=4)


def test_corners_are_each_once() -> None:
    (profile,) = derive_profiles({"timestep": ("batch",)}, ShapeRequest(("1:8",)))
    assert corners(profile) == ({"timestep": (1,)}, {"timestep": (8,)})
