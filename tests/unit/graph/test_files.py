from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from gacq_deploy.engines.open import open_engine
from gacq_deploy.errors import ArtifactError
from gacq_deploy.graph.files import data_path, read_graph, write_graph
from gacq_deploy.graph.index import model_bytes
from gacq_deploy.graph.weights import to_array


def _large_model(size: int = 600) -> onnx.ModelProto:
    weight = np.random.default_rng(0).standard_normal((size, size)).astype(np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["output"], "product")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", size])
    y = helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", size])
    graph = helper.make_graph([node], "g", [x], [y], [numpy_helper.from_array(weight, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_small_graphs_are_one_file(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    data_path(path).write_bytes(b"left by a larger model")
    assert write_graph(_large_model(), path, external_data_mb=10) == (path,)
    assert [p.name for p in tmp_path.iterdir()] == ["a.onnx"]
    assert read_graph(path) == _large_model()


def test_large_graphs_keep_their_weights_beside_them(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    model = _large_model()
    assert write_graph(model, path, external_data_mb=1) == (data_path(path), path)
    assert path.stat().st_size < 1000
    loaded = read_graph(path)
    assert not loaded.graph.initializer[0].raw_data, "read although nobody asked"
    assert to_array(loaded.graph.initializer[0]).tobytes() == model.graph.initializer[0].raw_data
    assert not model.graph.initializer[0].external_data, "the caller's model was changed"
    x = np.eye(2, 600, dtype=np.float32)
    with open_engine("ort-cpu", path, threads=1) as engine:
        output = engine.run({"x": x})["output"]
    np.testing.assert_array_equal(output, numpy_helper.to_array(model.graph.initializer[0])[:2])


def test_what_a_protobuf_message_cannot_hold_lies_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gacq_deploy.graph.files._PROTOBUF_LIMIT", 2**20)
    path = tmp_path / "a.onnx"
    assert write_graph(_large_model(), path, external_data_mb=4096) == (data_path(path), path)


def test_a_size_is_told_beyond_what_protobuf_counts() -> None:
    model = _large_model()
    assert 0.99 < model_bytes(model) / model.ByteSize() <= 1
    model.graph.initializer[0].dims[:] = [40_000, 20_000]
    assert model_bytes(model) > 3.2e9


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_damaged_weights_are_an_artifact_error(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.onnx"
    write_graph(_large_model(), path, external_data_mb=1)
    if damage == "missing":
        data_path(path).unlink()
    else:
        data_path(path).write_bytes(data_path(path).read_bytes()[:-4])
    with pytest.raises(ArtifactError, match=r"a\.onnx\.data"):
        read_graph(path)


@pytest.mark.parametrize("content", [b"", b"not a graph at all", None])
def test_what_is_no_graph_is_an_artifact_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactError):
        read_graph(path)
