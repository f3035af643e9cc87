"""A graph in pieces computes what one session does, of every family and every flavour."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from gacq_deploy.backends import pieces as module
from gacq_deploy.backends.ort import OrtCpuEngine, OrtPiece, integer_kernels
from gacq_deploy.backends.pieces import PieceEngine, open_frugally
from gacq_deploy.errors import ArtifactError, EngineError
from gacq_deploy.export.cpu_flavour import to_cpu_flavour
from gacq_deploy.export.float_graph.graph import float_graph
from gacq_deploy.export.qdq import insert_qdq
from gacq_deploy.export.stage import euclidean_error
from gacq_deploy.graph.files import write_graph
from gacq_deploy.graph.pieces import cut_into_pieces, held_bytes
from gacq_deploy.models.base import Denoiser
from gacq_deploy.spec import Array
from tests.support.artifacts.int4_layers import IN, int4_artifact, two_linears
from tests.support.models.architectures import small_dit, small_sd_unet, small_sdxl_unet
from tests.support.models.joint_transformers import small_flux
from tests.support.models.tiny import tiny_artifact
from tests.support.programs.anonymous_memory import sampled_peak

FAMILIES: dict[str, Callable[[], Denoiser]] = {
    "sd": small_sd_unet, "sdxl": small_sdxl_unet, "dit": small_dit, "flux": small_flux,
}  # fmt: skip


@cache
def _graphs(family: str) -> tuple[dict[str, onnx.ModelProto], dict[str, Array]]:
    denoiser = FAMILIES[family]()
    graph, artifact = float_graph(denoiser), tiny_artifact(denoiser)
    made = {
        "float.onnx": graph,
        "int8.onnx": insert_qdq(graph, artifact, placement="input"),
        "int8.cpu.onnx": to_cpu_flavour(insert_qdq(graph, artifact, placement="output")),
    }
    return made, {name: value.numpy() for name, value in denoiser.example_inputs(2, seed=3).items()}


@pytest.mark.parametrize("flavour", ["float.onnx", "int8.onnx", "int8.cpu.onnx"])
@pytest.mark.parametrize("family", FAMILIES)
def test_pieces_compute_what_the_whole_does(family: str, flavour: str, tmp_path: Path) -> None:
    graphs, feeds = _graphs(family)
    path = write_graph(graphs[flavour], tmp_path / flavour, external_data_mb=1)[-1]
    weights = sum(map(held_bytes, graphs[flavour].graph.initializer))
    rows = [{name: value[row : row + 1] for name, value in feeds.items()} for row in (0, 1)]
    header = onnx.load(path, load_external_data=False)
    for optimize in (False, True):
        with PieceEngine(
            path, threads=1, optimize=optimize, weight_bytes=weights // 12, scores_bytes=1
        ) as engine:
            output = engine.run(feeds)["output"]
            assert len(engine.pieces) > 12
            assert sum(p.attention is not None for p in engine.pieces) == _softmaxes(header)
        whole = OrtPiece(header, tmp_path, threads=1, optimize=optimize)
        expected = np.concatenate([whole.run(row)["output"] for row in rows])
        if optimize:
            # fused otherwise at the edges of a piece; INT8 makes percents of the last bit
            assert euclidean_error(output, expected) < (1e-5 if flavour == "float.onnx" else 0.1)
        else:
            np.testing.assert_array_equal(output, expected)


def _softmaxes(model: onnx.ModelProto) -> int:
    return sum(node.op_type == "Softmax" for node in model.graph.node)


@pytest.mark.parametrize("family", ["sd", "flux"])
def test_layers_run_in_the_kernels_that_they_have_in_the_whole(family: str) -> None:
    graph = _graphs(family)[0]["int8.cpu.onnx"]
    weights = sum(map(held_bytes, graph.graph.initializer))
    whole = {use.layer: use.kernel for use in integer_kernels(graph.SerializeToString())}
    apart = {}
    for piece in cut_into_pieces(graph, weight_bytes=weights // 12):
        apart |= {use.layer: use.kernel for use in integer_kernels(piece.model.SerializeToString())}
    assert apart == whole
    assert len(whole) > 10


def test_watched_tensors_come_as_they_are_made(tmp_path: Path) -> None:
    graphs, feeds = _graphs("dit")
    path = write_graph(graphs["float.onnx"], tmp_path / "float.onnx", external_data_mb=1)[-1]
    names = [
        node.output[0] for node in graphs["float.onnx"].graph.node if node.op_type == "LayerNormalization"
    ]
    one_row = {name: value[:1] for name, value in feeds.items()}
    with PieceEngine(path, threads=1, weight_bytes=1, watched=names) as engine:
        seen = list(engine.watch(one_row))
        assert [name for name, _ in seen] == [*names, "output"]
        np.testing.assert_array_equal(seen[-1][1], engine.run(one_row)["output"])


def test_small_graphs_run_as_a_whole_and_large_ones_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs, feeds = _graphs("dit")
    path = write_graph(graphs["float.onnx"], tmp_path / "float.onnx", external_data_mb=1)[-1]
    assert isinstance(open_frugally(path, feeds, threads=1), OrtCpuEngine)
    weights = sum(map(held_bytes, graphs["float.onnx"].graph.initializer))
    monkeypatch.setattr(module, "WHOLE_BYTES", weights - 1)
    assert isinstance(open_frugally(path, feeds, threads=1), PieceEngine)
    monkeypatch.setattr(module, "WHOLE_BYTES", weights)
    assert isinstance(open_frugally(path, feeds, threads=1), OrtCpuEngine)
    many = {name: np.repeat(value, 2000, axis=0) for name, value in feeds.items()}
    assert isinstance(open_frugally(path, many, threads=1), PieceEngine)


def test_feeds_and_files_are_checked_as_for_a_whole_session(tmp_path: Path) -> None:
    graphs, feeds = _graphs("dit")
    path = write_graph(graphs["float.onnx"], tmp_path / "float.onnx", external_data_mb=1)[-1]
    with PieceEngine(path, threads=1) as engine, pytest.raises(EngineError, match="NaN or Inf"):
        engine.run(feeds | {"sample": feeds["sample"] * np.float32("nan")})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match="truncated"):
        open_frugally(path, feeds)


@pytest.mark.parametrize("op_type", ["MatMul", "Gemm"])
def test_weights_in_blocks_of_4_bits_run_in_pieces(op_type: str, tmp_path: Path) -> None:
    graph = insert_qdq(two_linears(op_type), int4_artifact(), placement="input")
    path = write_graph(graph, tmp_path / "int4.onnx", external_data_mb=1)[-1]
    feeds = {"x": np.random.default_rng(0).standard_normal((3, IN)).astype(np.float32)}
    with PieceEngine(path, threads=1, weight_bytes=1) as engine, OrtCpuEngine(path, threads=1) as whole:
        assert len(engine.pieces) > 1
        assert euclidean_error(engine.run(feeds)["y"], whole.run(feeds)["y"]) < 1e-5


LAYERS, CHANNELS = 20, 1280
"""Convolutions of 3 x 3: 295 million parameters."""
MOST_MB = 200
"""Measured: 138, of which 37 are the interpreter and its libraries. One session took 1210."""


def _large_graph(folder: Path) -> Path:
    """Write a chain of convolutions; each has its place in the data file, the same random numbers stand in all."""
    weight = np.random.default_rng(0).standard_normal((CHANNELS, CHANNELS, 3, 3), dtype=np.float32) / 200
    nodes, stored = [], []
    with (folder / "large.onnx.data").open("wb") as file:
        for i in range(LAYERS):
            tensor = TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT, dims=weight.shape)
            tensor.data_location = TensorProto.EXTERNAL
            place = {"location": "large.onnx.data", "offset": file.tell(), "length": weight.nbytes}
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
            stored.append(tensor)
            file.write(weight.data)
            nodes.append(
                helper.make_node("Conv", [f"x{i}", f"w{i}"], [f"x{i + 1}"], f"conv{i}", pads=[1, 1, 1, 1])
            )
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", CHANNELS, 8, 8])
        for name in ("x0", f"x{LAYERS}")
    ]
    graph = helper.make_graph(nodes, "large", ends[:1], ends[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path = folder / "large.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_300_million_parameters_take_little_memory(tmp_path: Path) -> None:
    path = _large_graph(tmp_path)
    assert path.with_name("large.onnx.data").stat().st_size > 1.1e9
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.programs.anonymous_memory", str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert found["finite"]
    assert found["pieces"] >= 5
    assert 10 < found["peak"] < MOST_MB


def test_many_watched_tensors_are_not_held_together(tmp_path: Path) -> None:
    """As all modules of a model are asked: they have no weights that would make pieces of them."""
    nodes = [helper.make_node("Tanh", [f"x{i}"], [f"x{i + 1}"], f"tanh{i}") for i in range(30)]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 1 << 21]) for name in ("x0", "x30")
    ]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:])
    path = tmp_path / "chain.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    feeds = {"x0": np.ones((1, 1 << 21), np.float32)}
    watched = [f"x{i + 1}" for i in range(29)]
    with sampled_peak() as found, PieceEngine(path, threads=1, watched=watched) as engine:
        seen = [name for name, _ in engine.watch(feeds)]
    assert seen == [*watched, "x30"]
    assert found["peak"] - found["before"] < 10 * 8, "of 30 tensors of 8 MB each"


def test_a_tensor_that_is_read_right_behind_its_node_is_not_kept(tmp_path: Path) -> None:
    """As its extremes are measured: they are the graph's outputs, and of each the tensor is another."""
    nodes, ends = [], []
    for i in range(30):
        nodes += [
            helper.make_node("Tanh", [f"x{i}"], [f"x{i + 1}"]),
            helper.make_node("ReduceMax", [f"x{i + 1}"], [f"max{i}"], keepdims=0),
        ]
        ends.append(helper.make_tensor_value_info(f"max{i}", TensorProto.FLOAT, []))
    start = helper.make_tensor_value_info("x0", TensorProto.FLOAT, ["batch", 1 << 21])
    graph = helper.make_graph(nodes, "chain", [start], ends)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    piece = OrtPiece(model, tmp_path, threads=1, optimize=False)
    feeds = {"x0": np.ones((1, 1 << 21), np.float32)}
    with sampled_peak() as found:
        assert len(piece.run(feeds)) == 30
    assert found["peak"] - found["before"] < 10 * 8, "of 30 tensors of 8 MB each"
