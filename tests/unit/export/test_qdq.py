from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import numpy_helper

from gacq_deploy.artifact.artifact import CalibrationArtifact
from gacq_deploy.engines.open import open_engine
from gacq_deploy.errors import ExportError
from gacq_deploy.export.qdq import Placement, expected_sites, insert_qdq, quantized_sites
from gacq_deploy.graph.index import GraphIndex, attribute, module_of
from gacq_deploy.spec import QuantPlan, Site, TensorParams, TensorSpec
from tests.support.graphs.layer_graphs import LayerGraph, fake_quantize, layer_artifact, random_array
from tests.support.models.tiny import with_params

PLACEMENTS: tuple[Placement, ...] = ("input", "output")


def _run(model: onnx.ModelProto, x: np.ndarray, *, optimize: bool = False) -> np.ndarray:
    with open_engine("ort-cpu", model.SerializeToString(), threads=1, optimize=optimize) as engine:
        return engine.run({"x": x})[engine.outputs[0].name]


# the exported UNet


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_every_planned_site_is_quantized(
    float_model: onnx.ModelProto, artifact: CalibrationArtifact, placement: Placement
) -> None:
    before = float_model.SerializeToString()
    result = insert_qdq(float_model, artifact, placement=placement)
    assert float_model.SerializeToString() == before, "the float graph was changed"
    wanted = set(expected_sites(artifact.plan, placement))
    assert quantized_sites(result) >= wanted
    kinds = Counter(n.op_type for n in result.graph.node)
    initializers = GraphIndex(result).initializers
    weights = [n for n in result.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in initializers]
    outputs = len(artifact.plan.of_role("output")) if placement == "output" else 0
    tensors = {e.tie for e in artifact.plan.of_role("input")}
    assert len(weights) == len(artifact.plan.modules)
    assert kinds["QuantizeLinear"] == len(tensors) + outputs
    assert kinds["DequantizeLinear"] == len(weights) + len(tensors) + outputs


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_file_holds_the_artifacts_own_numbers(
    float_model: onnx.ModelProto, artifact: CalibrationArtifact, placement: Placement
) -> None:
    index = GraphIndex(insert_qdq(float_model, artifact, placement=placement))
    for layer in index.of_type("Conv", "Gemm", "MatMul"):
        site = Site(str(module_of(layer)), "weight")
        if artifact.plan.get(site) is None:
            continue
        dequantize = index.producers[layer.input[1]]
        codes, scale = index.constant(dequantize.input[0]), index.constant(dequantize.input[1])
        params = artifact.params[site]
        assert params.codes is not None
        assert codes is not None
        axis = attribute(dequantize, "axis", 1)
        assert axis == {"Conv": 0, "Gemm": 0, "MatMul": 1}[layer.op_type]
        np.testing.assert_array_equal(codes.T if layer.op_type == "MatMul" else codes, params.codes)
        np.testing.assert_array_equal(scale, params.scale)
        pair = index.producers[layer.input[0]]
        expected = artifact.params[Site(site.module, "input")].scale
        assert index.constant(pair.input[1]) == expected
        assert index.constant(pair.input[2]) == np.int8(0)


def test_attention_projections_share_one_quantizer(
    float_model: onnx.ModelProto, artifact: CalibrationArtifact
) -> None:
    index = GraphIndex(insert_qdq(float_model, artifact, placement="input"))
    quantizers = [n.name for n in index.of_type("QuantizeLinear") if ".attentions.0.to_" in n.name]
    assert [n for n in quantizers if n.startswith("mid_block")] == [
        "mid_block.attentions.0.to_q:input/QuantizeLinear",
        "mid_block.attentions.0.to_out.0:input/QuantizeLinear",
    ]
    pair = index.producers["mid_block.attentions.0.to_q:input.dequantized"]
    readers = [module_of(u.node) for u in index.readers(pair.output[0])]
    assert readers == [f"mid_block.attentions.0.to_{k}" for k in "qkv"]


def test_float_layers_keep_their_float_tensors(
    float_model: onnx.ModelProto, artifact: CalibrationArtifact
) -> None:
    index = GraphIndex(insert_qdq(float_model, artifact, placement="output"))
    for name in ("conv_in", "conv_out", "time_embedding.linear_1"):
        layer = next(n for n in index.nodes if module_of(n) == name and n.op_type in ("Conv", "Gemm"))
        assert layer.input[1] in index.initializers
    assert index.producers["output"].op_type == "Conv"


def test_a_quantized_graph_is_no_input(float_model: onnx.ModelProto, artifact: CalibrationArtifact) -> None:
    once = insert_qdq(float_model, artifact, placement="input")
    with pytest.raises(ExportError, match="already holds"):
        insert_qdq(once, artifact, placement="input")


def test_another_models_weights_are_refused(
    float_model: onnx.ModelProto, artifact: CalibrationArtifact
) -> None:
    index = GraphIndex(float_model)
    node = next(n for n in index.of_type("Conv") if module_of(n) == artifact.plan.modules[0])
    stored = index.initializers[node.input[1]]
    array = numpy_helper.to_array(stored).copy()
    array.view(np.uint32).reshape(-1)[0] ^= 1
    stored.CopyFrom(numpy_helper.from_array(array, stored.name))
    with pytest.raises(ExportError, match="calibration saw") as raised:
        insert_qdq(float_model, artifact, placement="input")
    assert artifact.plan.modules[0] in raised.value.message


def test_scales_of_one_tensor_must_agree(float_model: onnx.ModelProto, artifact: CalibrationArtifact) -> None:
    wrong = {"mid_block.attentions.0.to_k:input": TensorParams(np.float32(0.5).reshape(()))}
    with pytest.raises(ExportError, match="can have one scale only") as raised:
        insert_qdq(float_model, with_params(artifact, wrong), placement="input")
    assert "mid_block.attentions.0.to_q:input" in raised.value.message
    assert "mid_block.attentions.0.to_k:input" in raised.value.message


def test_a_layer_without_node_is_named(float_model: onnx.ModelProto, artifact: CalibrationArtifact) -> None:
    name = artifact.plan.modules[3]
    for node in float_model.graph.node:
        if module_of(node) == name:
            del node.metadata_props[:]
    with pytest.raises(ExportError, match=f"1 of {len(artifact.plan.modules)} planned layers") as raised:
        insert_qdq(float_model, artifact, placement="input")
    assert name in raised.value.message


# handmade graphs


def _two_layers() -> tuple[LayerGraph, onnx.ModelProto]:
    graph = LayerGraph()
    graph.conv("a", "x", "a", random_array(3, 2, 3, 3), random_array(3, seed=1))
    graph.conv("b", "a", "output", random_array(2, 3, 1, 1, seed=2))
    return graph, graph.model(["batch", 2, 6, 6], "output", ["batch", 2, 6, 6])


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_conv_graph_equals_fake_quantization(placement: Placement) -> None:
    graph, model = _two_layers()
    scales = {"a:input": 0.02, "a:output": 0.07, "b:input": 0.05}
    artifact = layer_artifact(graph.weights, scales)
    x = random_array(2, 2, 6, 6, seed=5)
    hidden = _conv(fake_quantize(x, 0.02), _weight(artifact, "a"), graph.stored["a.bias"])
    hidden = fake_quantize(hidden, 0.07) if placement == "output" else hidden
    expected = _conv(fake_quantize(hidden, 0.05), _weight(artifact, "b"), None)
    output = _run(insert_qdq(model, artifact, placement=placement), x)
    np.testing.assert_allclose(output, expected, atol=1e-5)


def _weight(artifact: CalibrationArtifact, module: str) -> np.ndarray:
    params = artifact.params[Site(module, "weight")]
    assert params.codes is not None
    return params.codes.astype(np.float32) * params.scale.reshape(-1, *([1] * (params.codes.ndim - 1)))


def _conv(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    pad = weight.shape[-1] // 2
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[2:], axis=(2, 3))
    result = np.einsum("nchwij,ocij->nohw", windows, weight, dtype=np.float64)
    return result + (0 if bias is None else bias.reshape(1, -1, 1, 1))


def test_a_quantized_graph_output_keeps_its_name() -> None:
    graph, model = _two_layers()
    artifact = layer_artifact(graph.weights, {"a:input": 0.02, "b:input": 0.05, "b:output": 0.03})
    result = insert_qdq(model, artifact, placement="output")
    assert [o.name for o in result.graph.output] == ["output"]
    assert GraphIndex(result).producers["output"].op_type == "DequantizeLinear"


@pytest.mark.parametrize("trans_b", [0, 1])
def test_gemm_takes_its_axis_from_its_layout(trans_b: int) -> None:
    weight, bias = random_array(5, 4), random_array(5, seed=1)
    graph = LayerGraph()
    graph.weights["fc"] = weight
    graph.stored |= {"w": np.ascontiguousarray(weight if trans_b else weight.T), "b": bias}
    graph.add("Gemm", ["x", "w", "b"], "output", "fc", transB=trans_b, alpha=0.5, beta=2.0)
    artifact = layer_artifact(graph.weights, {"fc:input": 0.03})
    result = insert_qdq(graph.model(["batch", 4], "output", ["batch", 5]), artifact, placement="input")
    dequantize = next(n for n in result.graph.node if n.name == "fc:weight/DequantizeLinear")
    assert attribute(dequantize, "axis", None) == (0 if trans_b else 1)
    x = random_array(3, 4, seed=2)
    expected = 0.5 * fake_quantize(x, 0.03) @ _weight(artifact, "fc").T + 2 * bias
    np.testing.assert_allclose(_run(result, x), expected, atol=1e-6)


def test_a_module_called_twice_has_two_pairs_and_one_scale() -> None:
    graph = LayerGraph()
    weight = random_array(4, 4)
    graph.linear("fc", "x", "once", weight)
    graph.add("Sigmoid", ["once"], "between")
    graph.add("MatMul", ["between", "fc.t"], "output", "fc")
    artifact = layer_artifact(graph.weights, {"fc:input": 0.02})
    result = insert_qdq(graph.model(["batch", 4], "output", ["batch", 4]), artifact, placement="input")
    index = GraphIndex(result)
    assert [n.name for n in index.of_type("QuantizeLinear")] == [
        "fc:input/QuantizeLinear",
        "fc:input#2/QuantizeLinear",
    ]
    assert {n.input[1] for n in index.of_type("QuantizeLinear")} == {"fc:input.scale"}
    assert sum(n.name == "fc:weight/DequantizeLinear" for n in index.nodes) == 1
    x = random_array(3, 4, seed=2)
    own = _weight(artifact, "fc").T
    middle = 1 / (1 + np.exp(-(fake_quantize(x, 0.02) @ own)))
    np.testing.assert_allclose(
        _run(result, x), fake_quantize(middle.astype(np.float32), 0.02) @ own, atol=0.02 * 0.1
    )


def test_tied_weights_keep_each_layers_own_codes() -> None:
    weight = random_array(4, 4)
    graph = LayerGraph()
    graph.linear("a", "x", "hidden", weight)
    graph.weights["b"] = weight
    graph.add("MatMul", ["hidden", "a.t"], "output", "b")
    nearest = layer_artifact({"a": weight}, {}).params[Site("a", "weight")].codes
    assert nearest is not None
    other = np.clip(nearest + np.int8(1), -127, 127).astype(np.int8)
    artifact = layer_artifact(graph.weights, {"a:input": 0.02, "b:input": 0.1}, codes={"b": other})
    result = insert_qdq(graph.model(["batch", 4], "output", ["batch", 4]), artifact, placement="input")
    index = GraphIndex(result)
    np.testing.assert_array_equal(index.constant("a:weight.codes"), nearest.T)
    np.testing.assert_array_equal(index.constant("b:weight.codes"), other.T)
    assert "a.t" not in index.initializers


def test_a_weight_that_a_float_layer_shares_stays_in_the_file() -> None:
    weight = random_array(4, 4)
    graph = LayerGraph()
    graph.linear("a", "x", "hidden", weight)
    graph.add("MatMul", ["hidden", "a.t"], "output", "b")
    artifact = layer_artifact({"a": weight}, {"a:input": 0.02})
    result = insert_qdq(graph.model(["batch", 4], "output", ["batch", 4]), artifact, placement="input")
    assert "a.t" in GraphIndex(result).initializers


def test_two_layouts_of_one_weight_are_refused() -> None:
    weight = random_array(4, 4)
    graph = LayerGraph()
    graph.linear("a", "x", "hidden", weight)
    graph.stored["w"] = weight
    graph.add("Gemm", ["hidden", "w"], "output", "a", transB=1)
    artifact = layer_artifact(graph.weights, {"a:input": 0.02})
    with pytest.raises(ExportError, match="different layouts"):
        insert_qdq(graph.model(["batch", 4], "output", ["batch", 4]), artifact, placement="input")


@pytest.mark.parametrize("opset", [18, 23])
def test_other_opsets_are_refused(opset: int) -> None:
    graph, _ = _two_layers()
    graph.opset = opset
    artifact = layer_artifact(graph.weights, {"a:input": 0.02, "b:input": 0.05})
    with pytest.raises(ExportError, match=f"opset {opset}"):
        insert_qdq(graph.model(["batch", 2, 6, 6], "output", ["batch", 2, 6, 6]), artifact, placement="input")


@pytest.mark.parametrize("spec", [TensorSpec(bits=4), TensorSpec(bits=8, axis=1)])
def test_activations_that_no_engine_quantizes_are_refused(spec: TensorSpec) -> None:
    graph, model = _two_layers()
    artifact = layer_artifact(graph.weights, {"a:input": 0.02, "b:input": 0.05}, spec=spec)
    with pytest.raises(ExportError, match="8 bits per tensor"):
        insert_qdq(model, artifact, placement="input")


def test_a_weight_without_its_input_is_refused() -> None:
    graph, model = _two_layers()
    artifact = layer_artifact(graph.weights, {"a:input": 0.02})
    with pytest.raises(ExportError, match="'b:input' is not planned"):
        insert_qdq(model, artifact, placement="input")


def test_an_empty_plan_is_refused() -> None:
    graph, model = _two_layers()
    artifact = replace(layer_artifact(graph.weights, {"a:input": 0.02}), plan=QuantPlan(()))
    with pytest.raises(ExportError, match="plans no layer"):
        insert_qdq(model, artifact, placement="input")


@settings(max_examples=50, deadline=None)
@given(
    x=arrays(np.float32, (1, 8), elements=st.floats(-1e4, 1e4, width=32)),
    scale=st.floats(2**-20, 2**10, width=32),
)
def test_onnxruntime_quantizes_as_the_reference_does(x: np.ndarray, scale: float) -> None:
    graph = LayerGraph()
    graph.linear("fc", "x", "output", np.eye(8, dtype=np.float32))
    artifact = layer_artifact(graph.weights, {"fc:input": scale})
    model = insert_qdq(graph.model(["batch", 8], "output", ["batch", 8]), artifact, placement="input")
    del model.graph.node[-1]
    model.graph.output[0].name = "fc:input.dequantized"
    np.testing.assert_array_equal(_run(model, x), fake_quantize(x, scale))
