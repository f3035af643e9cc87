"""What is taken out of a nested value by place can be put back, and nothing else changes."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from typing import Any

import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from hypothesis import given
from hypothesis import strategies as st

from gacq_deploy.models.pytree import call_leaves, call_with, leaves, replaced, same, spoken

Pair = namedtuple("Pair", ["cos", "sin"])
VALUES = st.recursive(
    st.none() | st.integers(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.tuples(inner, inner).map(lambda p: Pair(*p))
        | st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
        | st.dictionaries(st.sampled_from("abc"), inner, max_size=3).map(OrderedDict)
    ),
    max_leaves=12,
)


@given(VALUES)
def test_putting_every_leaf_back_gives_an_equal_value(value: Any) -> None:
    again = replaced(value, dict(leaves(value)))
    assert again == value
    assert type(again) is type(value)


@given(VALUES, st.data())
def test_only_the_named_leaf_changes(value: Any, data: st.DataObject) -> None:
    before = dict(leaves(value))
    path = data.draw(st.sampled_from(sorted(before, key=str)))
    changed = dict(leaves(replaced(value, {path: "new"})))
    assert changed == before | {path: "new"}
    assert dict(leaves(value)) == before


def test_an_output_of_diffusers_keeps_its_attributes() -> None:
    tensor = torch.ones(2)
    output = replaced(Transformer2DModelOutput(sample=torch.zeros(2)), {("sample",): tensor})
    assert isinstance(output, Transformer2DModelOutput)
    assert output.sample is output[0] is tensor


def test_arguments_are_placed_wherever_they_are_nested() -> None:
    args, kwargs = (1, [2, 3]), {"rotary": (4, 5)}
    assert list(call_leaves(args, kwargs).values()) == [1, 2, 3, 4, 5]
    assert call_with(args, kwargs, {("args", 1, 0): 20, ("kwargs", "rotary", 1): 50}) == (
        (1, [20, 3]),
        {"rotary": (4, 50)},
    )
    assert spoken(("kwargs", "rotary", 1)) == "kwargs['rotary'][1]"


def test_what_does_not_say_that_it_is_equal_is_not() -> None:
    assert same(torch.ones(2), torch.ones(2))
    assert not same(torch.ones(2), torch.ones(2, dtype=torch.float64))
    assert not same(torch.ones(2), torch.ones(1))
    assert not same(object(), object())
    assert not same(1, True)
    assert same("x", "x")
