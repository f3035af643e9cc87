"""INT4 weights in blocks: packed without loss, along the input features, in either layout of a linear layer."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import TensorProto

from gacq_deploy.artifact.artifact import CalibrationArtifact
from gacq_deploy.build_trt.float16.convert import to_half
from gacq_deploy.engines.open import open_engine
from gacq_deploy.errors import ExportError
from gacq_deploy.export.cpu_flavour import to_cpu_flavour
from gacq_deploy.export.qdq import insert_qdq, needed_opset, quantized_sites
from gacq_deploy.graph.files import read_graph, write_graph
from gacq_deploy.graph.index import GraphIndex, attribute
from gacq_deploy.lint.lint import count_findings, lint_graph
from gacq_deploy.parity.exact import CANONICAL, compare_quantized_file
from gacq_deploy.spec import QuantPlan, Site
from tests.support.artifacts.int4_layers import BLOCK, IN, OUT, WEIGHT, int4_artifact, two_linears
from tests.support.graphs.layer_graphs import random_array

X = random_array(5, IN, seed=7)


def run(model: onnx.ModelProto, *, optimize: bool) -> np.ndarray:
    with open_engine("ort-cpu", model.SerializeToString(), threads=1, optimize=optimize) as engine:
        return engine.run({"x": X})["y"]


def dequantized(artifact: CalibrationArtifact) -> np.ndarray:
    params = artifact.params[WEIGHT]
    assert params.codes is not None
    return params.codes * np.repeat(params.scale, BLOCK, axis=1)


@settings(max_examples=25, deadline=None)
@given(
    arrays(np.int8, (OUT, IN), elements=st.integers(-7, 7)),
    arrays(np.float32, (OUT, IN // BLOCK), elements=st.floats(2**-10, 4, width=32)),
    st.sampled_from(["MatMul", "Gemm"]),
)
def test_codes_and_scales_come_back_from_the_graph(codes: np.ndarray, scale: np.ndarray, op: str) -> None:
    artifact = int4_artifact(codes, scale)
    stored = onnx.ModelProto.FromString(
        insert_qdq(two_linears(op), artifact, placement="input").SerializeToString()
    )
    index = GraphIndex(stored)
    tensor = index.initializers["b:weight.codes"]
    assert tensor.data_type == TensorProto.INT4
    assert len(tensor.raw_data) == OUT * IN // 2
    found, scales = index.constant("b:weight.codes"), index.constant("b:weight.scale")
    assert found is not None
    assert scales is not None
    node = next(n for n in index.nodes if n.name == "b:weight/DequantizeLinear")
    along = 0 if op == "MatMul" else 1
    assert (attribute(node, "axis", None), attribute(node, "block_size", None)) == (along, BLOCK)
    own = (lambda a: a.T) if op == "MatMul" else (lambda a: a)
    np.testing.assert_array_equal(own(found).astype(np.int8), codes)
    np.testing.assert_array_equal(own(scales), scale)
    assert compare_quantized_file(artifact, two_linears(op), stored, CANONICAL) == []


@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
def test_the_engine_multiplies_the_float_input_by_codes_times_scales(op: str, optimize: bool) -> None:
    artifact = int4_artifact(alone=True)
    model = insert_qdq(two_linears(op), artifact, placement="input")
    bias = random_array(OUT, seed=3) if op == "Gemm" else 0
    expected = X @ random_array(OUT, IN, seed=1).T + X @ dequantized(artifact).T + bias
    np.testing.assert_allclose(run(model, optimize=optimize), expected, rtol=1e-5, atol=1e-4)
    assert not any(n.op_type == "QuantizeLinear" for n in model.graph.node)


def test_an_integer_layer_on_the_same_tensor_keeps_its_pair() -> None:
    artifact = int4_artifact()
    index = GraphIndex(insert_qdq(two_linears("MatMul"), artifact, placement="input"))
    layers = {n.output[0]: n for n in index.of_type("MatMul")}
    assert layers["ya"].input[0] == "a:input.dequantized"
    assert layers["yb"].input[0] == "x"
    assert quantized_sites(index.model) == {Site("a", "weight"), Site("a", "input"), WEIGHT}


def test_an_older_opset_is_raised_or_refused() -> None:
    plan = int4_artifact().plan
    assert [needed_opset(plan, o) for o in (19, 20, 21, 22)] == [21, 21, 21, 22]
    integer = QuantPlan(tuple(e for e in plan if e.site.module == "a"))
    assert needed_opset(integer, 20) == 20
    with pytest.raises(ExportError, match="opset 20; INT4 weights in blocks need 21"):
        insert_qdq(two_linears("MatMul", opset=20), int4_artifact(), placement="input")


@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
def test_the_cpu_flavour_leaves_them_as_they_are(op: str) -> None:
    signed = insert_qdq(two_linears(op), int4_artifact(), placement="output")
    graph = to_cpu_flavour(signed)
    names = [f"b:weight.{part}" for part in ("codes", "scale", "zero_point")]
    before, after = GraphIndex(signed).initializers, GraphIndex(graph).initializers
    assert [before[n] for n in names] == [after[n] for n in names]
    assert after["a:input.zero_point"].data_type == TensorProto.UINT8
    assert count_findings(lint_graph(graph, target="ort-cpu"))["error"] == 0
    np.testing.assert_allclose(run(graph, optimize=False), run(signed, optimize=False), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("exact", [True, False], ids=["half-scales", "float-scales"])
def test_half_graphs_dequantize_to_half_where_half_holds_the_scales(exact: bool) -> None:
    scale = int4_artifact().params[WEIGHT].scale
    artifact = int4_artifact(scale=scale if exact else scale * np.float32(1 + 2**-20))
    model = insert_qdq(two_linears("MatMul"), artifact, placement="input")
    half = to_half(model).model
    index = GraphIndex(half)
    node = next(n for n in index.nodes if n.name == "b:weight/DequantizeLinear")
    stored = index.tensor(node.input[1])
    assert stored is not None
    assert stored.data_type == (TensorProto.FLOAT16 if exact else TensorProto.FLOAT)
    assert [u.node.op_type for u in index.readers(node.output[0])] == ["MatMul" if exact else "Cast"]
    found = {f.rule for f in lint_graph(half, target="tensorrt")}
    assert ("block-cast" in found) == (not exact)
    assert "scale-half" not in found
    np.testing.assert_allclose(run(half, optimize=False), run(model, optimize=False), rtol=2e-2, atol=5e-2)


def test_a_large_graph_keeps_its_packed_weights_beside_it(tmp_path, monkeypatch) -> None:
    model = insert_qdq(two_linears("MatMul"), int4_artifact(), placement="input")
    monkeypatch.setattr("gacq_deploy.graph.weights.SMALLEST_EXTERNAL", 64)
    files = write_graph(model, tmp_path / "int8.onnx", external_data_mb=0)
    assert [f.name for f in files] == ["int8.onnx.data", "int8.onnx"]
    again = read_graph(tmp_path / "int8.onnx")
    np.testing.assert_array_equal(
        GraphIndex(again).constant("b:weight.codes"), GraphIndex(model).constant("b:weight.codes")
    )
    loaded = onnx.load(tmp_path / "int8.onnx")
    np.testing.assert_array_equal(run(loaded, optimize=False), run(model, optimize=False))
