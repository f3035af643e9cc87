"""Equal values have equal canonical bytes, those that json writes; an array has one digest however it lies."""

from __future__ import annotations

import json
import math
from enum import IntEnum
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

from gacq_deploy.storage import digests
from gacq_deploy.storage.digests import canonical_json, digest_array
from tests.support.fuzz.bounded import counted

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
DOCUMENTS = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=4), inner, max_size=4)
        | st.dictionaries(st.integers(), inner, max_size=4)
    ),
    max_leaves=12,
)


class Count(IntEnum):
    THREE = 3


def of_json(document: Any) -> bytes:
    return (
        json.dumps(document, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    ).encode()


@given(DOCUMENTS)
def test_the_bytes_are_those_of_json(document: Any) -> None:
    assert canonical_json(document) == of_json(document)


@pytest.mark.parametrize(
    "document",
    [{True: 1}, {None: []}, {1.5: {}}, [Count.THREE, {}, [], (), -0.0, 1e300], {Count.THREE: Count.THREE}],
)
def test_so_are_those_of_what_is_rare(document: Any) -> None:
    assert canonical_json(document) == of_json(document)


@pytest.mark.parametrize(
    ("document", "error"),
    [
        ([float("nan")], ValueError),
        ({"a": float("inf")}, ValueError),
        ({(1, 2): 3}, TypeError),
        ({1: 2, "a": 3}, TypeError),
        ([b"a"], TypeError),
        (["\ud800"], UnicodeEncodeError),
    ],
)
def test_what_is_no_json_is_refused_alike(document: Any, error: type[Exception]) -> None:
    for write in (canonical_json, of_json):
        with pytest.raises(error):
            write(document)


def test_a_value_deep_inside_costs_no_more_than_one_at_the_top() -> None:
    shallow, deep = list(range(1000)), list(range(1000))
    for _ in range(100):
        deep = [deep]
    costs = []
    for document in (shallow, deep):
        with counted(1_000_000) as calls:
            canonical_json(document)
        costs.append(calls[0])
    assert costs[1] < 1.5 * costs[0]


@given(shape=array_shapes(max_dims=4, max_side=9), order=st.integers(0, 3), piece=st.integers(1, 200))
def test_a_turned_array_is_hashed_in_pieces_as_a_copy_would_be(
    shape: tuple[int, ...], order: int, piece: int
) -> None:
    array = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    turned = np.moveaxis(array, order % array.ndim, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digests, "_PIECE_BYTES", piece)
        assert digest_array(turned) == digest_array(np.ascontiguousarray(turned))
