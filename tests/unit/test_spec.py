"""Sites, specs and plans refuse what makes no sense."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gacq_deploy.spec import ROLES, PlannedSite, QuantPlan, Site, TensorParams, TensorSpec

names = st.from_regex(r"[a-z_]+(\.[a-z0-9_]+){0,4}", fullmatch=True)


@given(module=names, role=st.sampled_from(ROLES))
def test_a_site_round_trips_through_its_key(module: str, role: str) -> None:
    site = Site(module, role)  # type: ignore[arg-type]
    assert Site.parse(str(site)) == site


@pytest.mark.parametrize("text", ["", "conv", ":input", "conv:bias"])
def test_a_malformed_key_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not"):
        Site.parse(text)


@pytest.mark.parametrize(
    ("bits", "narrow", "bounds"),
    [
        (8, True, (-127, 127)),
        (8, False, (-128, 127)),
        (4, True, (-7, 7)),
        (4, False, (-8, 7)),
        (2, True, (-1, 1)),
    ],
)
def test_integer_bounds(bits: int, narrow: bool, bounds: tuple[int, int]) -> None:
    spec = TensorSpec(bits=bits, narrow=narrow)
    assert (spec.qmin, spec.qmax) == bounds


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf, 1e-45])
def test_scales_no_engine_accepts_are_refused(scale: float) -> None:
    with pytest.raises(ValueError, match="finite, positive"):
        TensorParams(np.array(scale, np.float32))


@pytest.mark.parametrize(
    ("spec", "shape", "scales"),
    [
        (TensorSpec(bits=8), (4, 6, 3, 3), ()),
        (TensorSpec(bits=8, axis=0), (4, 6, 3, 3), (4,)),
        (TensorSpec(bits=4, axis=0, block=2), (4, 6), (4, 3)),
        (TensorSpec(bits=4, axis=0, block=6), (4, 6), (4, 1)),
    ],
)
def test_how_many_scales_a_tensor_has(
    spec: TensorSpec, shape: tuple[int, ...], scales: tuple[int, ...]
) -> None:
    assert spec.scale_shape(shape) == scales


@pytest.mark.parametrize("shape", [(4, 7), (4, 4, 3, 3), (4,)])
def test_blocks_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"blocks of 4 do not divide"):
        TensorSpec(bits=4, axis=0, block=4).scale_shape(shape)


@pytest.mark.parametrize("axis", [2, -3])
def test_an_axis_that_the_tensor_lacks_is_refused(axis: int) -> None:
    with pytest.raises(ValueError, match=rf"axis {axis} is none of a weight of shape \[4, 6\]"):
        TensorSpec(bits=8, axis=axis).scale_shape((4, 6))


def test_scales_have_at_most_two_axes() -> None:
    TensorParams(np.ones((3, 2), np.float32))
    with pytest.raises(ValueError, match="rank 0, 1 or 2"):
        TensorParams(np.ones((3, 2, 1), np.float32))


def test_scales_and_codes_have_one_dtype() -> None:
    with pytest.raises(ValueError, match="float32"):
        TensorParams(np.ones(3))
    with pytest.raises(ValueError, match="int8"):
        TensorParams(np.ones(3, np.float32), np.ones((3, 3), np.int16))  # type: ignore[arg-type]


def test_a_plan_holds_a_site_once_and_keeps_its_order() -> None:
    entries = [PlannedSite(Site(m, "weight"), TensorSpec(bits=8), f"{m}:weight") for m in ("b", "a")]
    plan = QuantPlan(tuple(entries))
    assert plan.modules == ("b", "a")
    assert plan.get(Site("a", "weight")) is entries[1]
    assert plan.get(Site("a", "input")) is None
    with pytest.raises(ValueError, match="twice"):
        QuantPlan((entries[0], entries[0]))
