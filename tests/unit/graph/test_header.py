from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from gacq_deploy.engines.open import open_engine
from gacq_deploy.errors import ArtifactError
from gacq_deploy.graph.files import read_graph
from gacq_deploy.graph.header import read_header
from tests.support.graphs.onnx_graphs import denoiser_graph, feeds, reference, save_external

ENGINES = ["ort-cpu", "openvino"]


@pytest.mark.parametrize("engine", ENGINES)
def test_external_data_beside_the_file_is_loaded(engine: str, tmp_path: Path) -> None:
    data = save_external(denoiser_graph(), tmp_path / "float.onnx")
    assert data.stat().st_size > 0
    with open_engine(engine, tmp_path / "float.onnx", threads=1) as opened:
        np.testing.assert_allclose(opened.run(feeds(2))["output"], reference(feeds(2)), atol=2e-6)


def _missing(data: Path, _: Path) -> None:
    data.unlink()


def _truncated(data: Path, _: Path) -> None:
    os.truncate(data, data.stat().st_size - 1)


def _symlink(data: Path, elsewhere: Path) -> None:
    data.rename(elsewhere)
    data.symlink_to(elsewhere)


def _hard_link(data: Path, elsewhere: Path) -> None:
    os.link(data, elsewhere)


def _folder(data: Path, _: Path) -> None:
    data.unlink()
    data.mkdir()


SPOILED: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "missing": (_missing, "missing or not a regular file"),
    "truncated": (_truncated, "ends at"),
    "symlink": (_symlink, "link"),
    "hard link": (_hard_link, "2 hard links"),
    "folder": (_folder, "missing or not a regular file"),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", SPOILED)
def test_spoiled_external_data_is_refused(engine: str, case: str, tmp_path: Path) -> None:
    spoil, message = SPOILED[case]
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "float.onnx"
    data = save_external(denoiser_graph(), path)
    spoil(data, tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match=message):
        open_engine(engine, path, threads=1)


@pytest.mark.parametrize("location", ["../float.data", "/etc/hostname", "a\\b", "", "sub/../../float.data"])
def test_external_data_outside_the_folder_is_refused(location: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="outside its folder or is a link"):
        read_header(_located(location, tmp_path))


@pytest.mark.parametrize(
    "location", ["*/_ORT_MEM_ADDR_/*", "_ORT_X", "sub/_ort_mem_addr_", "*", "float.*", "a*b"]
)
def test_a_location_that_means_an_address_is_refused_though_the_file_is_there(
    location: str, tmp_path: Path
) -> None:
    path = _located(location, tmp_path)
    (path.parent / location).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path.with_name("float.onnx.data"), path.parent / location)
    for read in (read_header, read_graph):
        with pytest.raises(ArtifactError, match="an address in memory") as caught:
            read(path)
        assert location in caught.value.message


def _located(location: str, tmp_path: Path) -> Path:
    """Write a graph whose weights are said to lie in ``location``."""
    (tmp_path / "float.data").write_bytes(bytes(4096))
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "float.onnx"
    save_external(denoiser_graph(), path)
    model = onnx.load(str(path), load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(model.SerializeToString())
    return path


IMPOSSIBLE: dict[str, dict[str, str]] = {
    "zero byte": {"location": "w\0.data"},
    "name too long": {"location": "w" * 300},
    "path too long": {"location": "w/" * 3000 + "w"},
    "negative": {"location": "float.data", "offset": "-4"},
    "other digits": {"location": "float.data", "offset": "\u0663"},
    "thousands of digits": {"location": "float.data", "length": "9" * 5000},
}


@pytest.mark.parametrize("entries", IMPOSSIBLE.values(), ids=list(IMPOSSIBLE))
def test_places_that_cannot_be_are_refused(entries: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "float.data").write_bytes(bytes(4096))
    model = denoiser_graph()
    tensor = model.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    path = tmp_path / "float.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ArtifactError, match="tensor 'w'"):
        read_header(path)


def test_external_data_in_a_subgraph_is_found(tmp_path: Path) -> None:
    constant = helper.make_tensor("hidden", TensorProto.FLOAT, [1], [1.0])
    constant.ClearField("float_data")
    constant.data_location = TensorProto.EXTERNAL
    constant.external_data.add(key="location", value="../secret")
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=constant)],
        "branch",
        [],
        [helper.make_tensor_value_info("c", TensorProto.FLOAT, [1])],
    )
    node = helper.make_node("If", ["flag"], ["y"], then_branch=branch, else_branch=branch)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("flag", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    path = tmp_path / "if.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    with pytest.raises(ArtifactError, match=r"\.\./secret"):
        read_header(path)


def test_bytes_with_external_data_are_refused(tmp_path: Path) -> None:
    save_external(denoiser_graph(), tmp_path / "float.onnx")
    with pytest.raises(ArtifactError, match="bytes cannot have"):
        read_header((tmp_path / "float.onnx").read_bytes())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no graph with outputs"),
        (b"not an ONNX file at all", "truncated or not an ONNX model"),
        (denoiser_graph().SerializeToString()[:-40], "truncated"),
    ],
    ids=["empty", "text", "truncated"],
)
def test_a_corrupt_file_is_an_artifact_error(engine: str, data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=message) as caught:
        open_engine(engine, path, threads=1)
    assert str(path) in caught.value.message
    with pytest.raises(ArtifactError, match=message):
        open_engine(engine, data, threads=1)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_missing_file_is_an_artifact_error(engine: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="missing"):
        open_engine(engine, tmp_path / "none.onnx")
