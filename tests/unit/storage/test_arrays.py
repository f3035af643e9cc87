"""Arrays in a file are what the library writes and reads, and are held once at most."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gacq_deploy.errors import ArtifactError
from gacq_deploy.storage import arrays as arrays_module
from gacq_deploy.storage.arrays import load_arrays, map_arrays, save_arrays
from gacq_deploy.storage.digests import digest_file

KINDS = [
    "uint64", "int64", "float64", "complex64", "float32", "uint32", "int32", "float16", "uint16", "int16", "int8",
    "uint8", "bool",
]  # fmt: skip
arrays = hnp.arrays(
    dtype=st.sampled_from([np.float32, np.int8, np.int64]),
    shape=hnp.array_shapes(min_dims=0, max_dims=4, max_side=5),
    elements=st.integers(-100, 100),
)


@settings(max_examples=60, deadline=None)
@given(array=arrays, layout=st.sampled_from(["plain", "transposed", "strided", "fortran"]))
def test_arrays_of_any_memory_layout_round_trip(array: np.ndarray, layout: str) -> None:
    laid_out = {
        "plain": array,
        "transposed": array.T,
        "strided": np.repeat(array, 2, axis=-1)[..., ::2] if array.ndim else array,
        "fortran": np.asfortranarray(array),
    }[layout]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        save_arrays(path, {"x": laid_out}, schema="test/1")
        loaded = load_arrays(path, what="x", hint="")["x"]
        contiguous = {"x": np.ascontiguousarray(laid_out).reshape(laid_out.shape)}
        assert path.read_bytes() == safetensors.numpy.save(contiguous, metadata={"schema": "test/1"})
    assert loaded.shape == laid_out.shape
    assert loaded.dtype == laid_out.dtype
    np.testing.assert_array_equal(loaded, laid_out)


def test_equal_arrays_give_equal_bytes_in_any_order(tmp_path: Path) -> None:
    a, b = np.arange(6.0), np.ones((2, 3), np.int8)
    save_arrays(tmp_path / "1", {"a": a, "b": b}, schema="test/1")
    save_arrays(tmp_path / "2", {"b": b, "a": a}, schema="test/1")
    assert digest_file(tmp_path / "1") == digest_file(tmp_path / "2")


@pytest.mark.parametrize("keep", [0, 5, 40])
def test_a_truncated_safetensors_file_is_an_artifact_error(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "x"
    save_arrays(path, {"x": np.ones(100)}, schema="test/1")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ArtifactError, match="not a whole safetensors"):
        load_arrays(path, what="Tensors", hint="")


def test_the_bytes_of_every_type_are_those_of_the_library(tmp_path: Path) -> None:
    held = {f'{kind} " \\ \n\x01 ä': np.ones((2, 3), kind) for kind in KINDS}
    held |= {"b": np.ones((0, 2), np.float32), "a": np.array(3.5, np.float32), "ä": np.arange(3.0)}
    save_arrays(tmp_path / "x", held, schema="test/1")
    assert (tmp_path / "x").read_bytes() == safetensors.numpy.save(held, metadata={"schema": "test/1"})
    save_arrays(tmp_path / "y", held | {"ä": np.arange(3, dtype=">f8")}, schema="test/1")
    assert digest_file(tmp_path / "y") == digest_file(tmp_path / "x")
    for loaded in (load_arrays, map_arrays):
        found = loaded(tmp_path / "x", what="x", hint="", sha256=digest_file(tmp_path / "x"))
        assert found.keys() == held.keys()
        for name, value in found.items():
            np.testing.assert_array_equal(value, held[name], strict=True)
            assert value.flags.writeable == (loaded is load_arrays)


def test_mapped_arrays_stay_what_they_were_when_their_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "x"
    large, small = np.arange(1 << 16, dtype=np.int8), np.arange(10.0)
    save_arrays(path, {"large": large, "small": small}, schema="test/1")
    found = map_arrays(path, what="x", hint="", sha256=digest_file(path))
    save_arrays(path, {"large": large + 1, "small": small + 1}, schema="test/1")
    np.testing.assert_array_equal(found["large"], large)
    np.testing.assert_array_equal(found["small"], small)
    with pytest.raises(ArtifactError, match="altered"):
        map_arrays(path, what="x", hint="", sha256="0" * 64)


def test_a_file_that_is_replaced_while_it_is_mapped_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    save_arrays(path, {"x": np.arange(3.0)}, schema="test/1")
    sha256, places = digest_file(path), arrays_module.array_places

    def meanwhile(file: BinaryIO) -> dict[str, arrays_module.ArrayPlace]:
        save_arrays(path, {"x": np.arange(4.0)}, schema="test/1")
        return places(file)

    monkeypatch.setattr(arrays_module, "array_places", meanwhile)
    with pytest.raises(ArtifactError, match="was replaced or altered while it was read"):
        map_arrays(path, what="x", hint="", sha256=sha256)


WHOLE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "header",
    [
        [],
        {"x": {**WHOLE, "dtype": "BF16"}},
        {"x": {**WHOLE, "dtype": None}},
        {"x": {**WHOLE, "shape": [3]}},
        {"x": {**WHOLE, "shape": [-2]}},
        {"x": {**WHOLE, "shape": [2.0]}},
        {"x": {**WHOLE, "shape": 2}},
        {"x": {**WHOLE, "data_offsets": [0]}},
        {"x": {**WHOLE, "data_offsets": [-8, 0]}},
        {"x": {**WHOLE, "data_offsets": [8, 16]}},
        {"x": {**WHOLE, "shape": [1], "data_offsets": [0, 4]}},
        {"x": WHOLE, "y": WHOLE},
        {"x": WHOLE, "y": {"dtype": "F32", "shape": [0, 1 << 62, 1 << 62], "data_offsets": [8, 8]}},
        {"x": {"dtype": "F32", "shape": [2, *[1] * 100], "data_offsets": [0, 8]}},
        {"x": "F32"},
        {},
    ],
)
def test_a_header_that_does_not_fit_its_file_is_an_artifact_error(tmp_path: Path, header: object) -> None:
    text = json.dumps(header).encode()
    (tmp_path / "x").write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(ArtifactError, match="not a whole safetensors"):
        map_arrays(tmp_path / "x", what="Tensors", hint="")


def test_arrays_that_are_missing_are_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="Tensors is missing"):
        map_arrays(tmp_path / "x", what="Tensors", hint="")
