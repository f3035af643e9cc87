from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes
from numpy.typing import DTypeLike
from onnx import ModelProto, TensorProto, helper

from gacq_deploy.graph.stored import damage_of
from gacq_deploy.graph.weights import (
    WeightFile,
    has_values,
    in_file,
    set_folder,
    stored,
    to_array,
    widened,
    with_values,
    without_values,
)

DTYPES: list[DTypeLike] = [np.float32, np.float16, ml_dtypes.bfloat16, np.int8, np.int64, ml_dtypes.int4]


@given(dtype=st.sampled_from(DTYPES), shape=array_shapes(max_side=40), seed=st.integers(0, 9))
def test_values_are_the_same_wherever_they_lie(
    tmp_path_factory: pytest.TempPathFactory, dtype: DTypeLike, shape: tuple[int, ...], seed: int
) -> None:
    values = np.random.default_rng(seed).integers(-8, 8, shape).astype(dtype)
    path = tmp_path_factory.getbasetemp() / "weights.data"
    with path.open("wb") as file:
        weights = WeightFile(path, file)
        weights.store(np.arange(2000), "first")
        tensor = weights.store(values.T, "w")
    found = to_array(tensor)
    assert (found.dtype, found.shape) == (values.dtype, values.T.shape)
    assert found.tobytes() == values.T.tobytes()
    assert with_values(tensor) == stored(values.T, "w")
    assert not damage_of(tensor)


def test_what_lies_in_a_file_is_mapped(tmp_path: Path) -> None:
    path = tmp_path / "weights.data"
    path.write_bytes(np.arange(1000, dtype=np.float32).tobytes())
    tensor = in_file(without_values("w", TensorProto.FLOAT, [10, 50]), path, 400, 2000)
    found = to_array(tensor)
    assert not found.flags.writeable
    np.testing.assert_array_equal(found, np.arange(100, 600, dtype=np.float32).reshape(10, 50))


def test_a_shape_has_no_values() -> None:
    shape = without_values("w", TensorProto.FLOAT, [2, 3])
    assert not has_values(shape)
    with pytest.raises(ValueError, match="'w' is a shape without values"):
        to_array(shape)


def test_only_the_reader_says_which_folder_counts(tmp_path: Path) -> None:
    (tmp_path / "w.data").write_bytes(bytes(40))
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[8], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "w.data"), ("offset", "8"), ("basepath", "/etc"), ("stored", "10")):
        tensor.external_data.add(key=key, value=value)
    model = ModelProto(graph=helper.make_graph([], "g", [], [], [tensor]))
    set_folder(model, tmp_path)
    assert to_array(model.graph.initializer[0]).shape == (8,), "without a length ONNX means all that follows"
    set_folder(model, None)
    assert {e.key for e in model.graph.initializer[0].external_data} == {"location", "offset", "length"}


@pytest.mark.parametrize("half", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_widened_when_it_is_read(tmp_path: Path, half: DTypeLike) -> None:
    values = np.linspace(-3, 3, 2000).astype(half).reshape(40, 50)
    path = tmp_path / "weights.data"
    with path.open("wb") as file:
        weights = WeightFile(path, file)
        wide = widened(weights.store(values, "w.stored"), "w")
        np.testing.assert_array_equal(to_array(wide), values.astype(np.float32))
        assert to_array(wide).dtype == np.float32
        again = weights.add(wide)
        file.flush()
        np.testing.assert_array_equal(to_array(again), values.astype(np.float32))
    assert with_values(wide) == stored(values.astype(np.float32), "w")
    assert widened(stored(values, "w.stored"), "w") == stored(values.astype(np.float32), "w")
