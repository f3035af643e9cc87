"""Retrained parameters are found by module, operator and value, and nothing else of the graph changes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

from gacq_deploy.artifact.artifact import CalibrationArtifact, RetrainedParameter
from gacq_deploy.engines.open import open_engine
from gacq_deploy.errors import ExportError
from gacq_deploy.export.cpu_flavour import to_cpu_flavour
from gacq_deploy.export.float_graph.graph import float_graph
from gacq_deploy.export.parameters import apply_parameters, find_parameters
from gacq_deploy.export.qdq import Placement, insert_qdq
from gacq_deploy.graph.index import GraphIndex, module_of
from gacq_deploy.models.base import Denoiser
from gacq_deploy.quant.layers import output_mode
from gacq_deploy.spec import Array
from gacq_deploy.storage.digests import digest_array
from tests.support.artifacts.retrained import (
    CONV_BIAS,
    RETRAINED,
    prepare_torch,
    retrained,
    torch_answers,
)
from tests.support.graphs.layer_graphs import LayerGraph, layer_artifact, random_array
from tests.support.models.tiny import WITHOUT_ATTENTION, denoiser_of, tiny_artifact, tiny_unet


def own_copy(denoiser: Denoiser) -> Denoiser:
    return replace(denoiser, module=copy.deepcopy(denoiser.module))


def run_graph(model: onnx.ModelProto, inputs: Mapping[str, torch.Tensor]) -> Array:
    feeds = {k: v.numpy() for k, v in inputs.items()}
    with open_engine("ort-cpu", model.SerializeToString(), threads=1, optimize=False) as engine:
        return engine.run(feeds)["output"]


@pytest.fixture(scope="module")
def changed(denoiser: Denoiser, artifact: CalibrationArtifact) -> CalibrationArtifact:
    return replace(artifact, parameters=retrained(denoiser))


# the exported UNet


def test_the_float_graph_computes_with_every_retrained_parameter(
    float_model: onnx.ModelProto, denoiser: Denoiser, artifact: CalibrationArtifact
) -> None:
    """Every bias and norm of the model at once: each must be found."""
    names = [n for n, p in denoiser.module.named_parameters() if p.ndim == 1]
    artifact = replace(artifact, parameters=retrained(denoiser, names))
    before = float_model.SerializeToString()
    result = apply_parameters(float_model, artifact)
    assert float_model.SerializeToString() == before, "the float graph was changed"
    theirs = own_copy(denoiser)
    with torch.no_grad():
        for name, parameter in artifact.parameters.items():
            theirs.module.get_parameter(name).copy_(torch.from_numpy(parameter.value))
    inputs = denoiser.example_inputs(5, seed=3)
    expected = torch_answers(theirs, inputs)
    np.testing.assert_allclose(run_graph(result, inputs), expected, rtol=1e-4, atol=1e-5)
    assert np.abs(run_graph(float_model, inputs) - expected).max() > 0.05


@pytest.mark.parametrize("placement", ["input", "output"])
def test_the_quantized_graphs_compute_what_torch_does(
    float_model: onnx.ModelProto, denoiser: Denoiser, changed: CalibrationArtifact, placement: Placement
) -> None:
    graph = insert_qdq(float_model, changed, placement=placement)
    theirs = own_copy(denoiser)
    prepare_torch(theirs, changed)
    inputs = denoiser.example_inputs(5, seed=3)
    expected = torch_answers(theirs, inputs)
    if placement == "output":
        graph = to_cpu_flavour(graph)
        with output_mode(theirs.module):
            expected = torch_answers(theirs, inputs)
    output = run_graph(graph, inputs)
    # rounding ties fall to either side; that moves single values by a step
    assert np.linalg.norm(output - expected) < 2e-2 * np.linalg.norm(expected)
    plain = insert_qdq(float_model, replace(changed, parameters={}), placement=placement)
    assert np.linalg.norm(run_graph(plain, inputs) - expected) > 5e-2 * np.linalg.norm(expected)


def test_without_retrained_parameters_the_graph_stays_as_it_is(
    float_model: onnx.ModelProto, artifact: CalibrationArtifact
) -> None:
    assert apply_parameters(float_model, artifact) == float_model


def test_every_parameter_is_in_the_graph_bit_for_bit(
    float_model: onnx.ModelProto, changed: CalibrationArtifact
) -> None:
    index = GraphIndex(insert_qdq(float_model, changed, placement="input"))
    for name, parameter in changed.parameters.items():
        nodes = [n for n in index.nodes if module_of(n) == name.rpartition(".")[0]]
        constants = [index.constant(i) for n in nodes for i in n.input]
        held = [c for c in constants if c is not None and c.size == parameter.value.size]
        values = [c.reshape(parameter.value.shape) for c in held if c.dtype == np.float32]
        assert sum(np.array_equal(v, parameter.value) for v in values) == 1, name


def test_the_integer_bias_derives_from_the_retrained_one(
    float_model: onnx.ModelProto, changed: CalibrationArtifact
) -> None:
    index = GraphIndex(to_cpu_flavour(insert_qdq(float_model, changed, placement="output")))
    module = CONV_BIAS.removesuffix(".bias")
    codes, scale = (index.constant(f"{module}:bias.{part}") for part in ("codes", "scale"))
    assert codes is not None
    assert scale is not None
    value = changed.parameters[CONV_BIAS].value
    np.testing.assert_array_equal(codes, np.rint(value.astype(np.float64) / scale))


@pytest.mark.parametrize("name", RETRAINED)
def test_another_models_parameter_is_refused_by_name(
    float_model: onnx.ModelProto, changed: CalibrationArtifact, name: str
) -> None:
    parameter = replace(changed.parameters[name], source_sha256="a" * 64)
    artifact = replace(changed, parameters={**changed.parameters, name: parameter})
    with pytest.raises(ExportError, match="calibration started from") as raised:
        insert_qdq(float_model, artifact, placement="input")
    assert f"'{name}'" in raised.value.message
    assert f"'{name.rpartition('.')[0]}'" in raised.value.message


@pytest.mark.parametrize(
    "name",
    ["no.such.module.bias", "mid_block.resnets.0.nonlinearity.weight", "conv_in.weight", "conv_in.gain"],
)
def test_what_is_no_bias_or_norm_of_the_graph_is_refused(
    float_model: onnx.ModelProto, artifact: CalibrationArtifact, name: str
) -> None:
    parameter = RetrainedParameter(np.ones(8, np.float32), digest_array(np.ones(8, np.float32)))
    with pytest.raises(ExportError, match=name):
        apply_parameters(float_model, replace(artifact, parameters={name: parameter}))


@pytest.mark.slow
def test_biases_of_zero_and_norms_of_one_are_told_apart() -> None:
    """A fresh model: parameters have equal values, and norms have a group a channel."""
    module = tiny_unet(norm_num_groups=8, **WITHOUT_ATTENTION | {"add_attention": True})
    for name, parameter in module.named_parameters():
        if parameter.ndim == 1:
            parameter.data.fill_(0.0 if name.endswith("bias") else 1.0)
    denoiser = denoiser_of(module)
    model = float_graph(denoiser)
    assert len(GraphIndex(model).producer("conv2d").input) == 3, "no graph depends on the values of weights"
    artifact = replace(tiny_artifact(denoiser), parameters=retrained(denoiser))
    graph = insert_qdq(model, artifact, placement="input")
    inputs = denoiser.example_inputs(5, seed=3)
    prepare_torch(denoiser, artifact)
    expected = torch_answers(denoiser, inputs)
    assert np.linalg.norm(run_graph(graph, inputs) - expected) < 2e-2 * np.linalg.norm(expected)


# handmade graphs


def test_a_shared_constant_is_replaced_for_its_module_alone() -> None:
    zeros, value = np.zeros(3, np.float32), random_array(3, seed=4)
    graph = LayerGraph()
    graph.stored["zeros"] = zeros
    graph.linear("a", "x", "ax", np.eye(3, dtype=np.float32))
    graph.add("Add", ["ax", "zeros"], "a", "a")
    graph.linear("b", "a", "bx", np.eye(3, dtype=np.float32))
    graph.add("Add", ["bx", "zeros"], "output", "b")
    model = graph.model(["batch", 3], "output", ["batch", 3])
    artifact = layer_artifact(graph.weights, {"a:input": 0.1, "b:input": 0.1})
    artifact = replace(artifact, parameters={"b.bias": RetrainedParameter(value, digest_array(zeros))})
    index = GraphIndex(apply_parameters(model, artifact))
    np.testing.assert_array_equal(index.constant(index.producers["a"].input[1]), zeros)
    np.testing.assert_array_equal(index.constant(index.producers["output"].input[1]), value)


def test_a_module_called_twice_changes_in_both_calls() -> None:
    own, value = random_array(4, seed=1), random_array(4, seed=2)
    graph = LayerGraph()
    graph.conv("conv", "x", "once", random_array(4, 4, 1, 1), own)
    graph.add("Sigmoid", ["once"], "between")
    graph.add("Conv", ["between", "conv.weight", "conv.bias"], "output", "conv")
    model = graph.model(["batch", 4, 2, 2], "output", ["batch", 4, 2, 2])
    artifact = layer_artifact(graph.weights, {"conv:input": 0.1})
    artifact = replace(artifact, parameters={"conv.bias": RetrainedParameter(value, digest_array(own))})
    assert len(find_parameters(GraphIndex(model), artifact)["conv.bias"]) == 2
    index = GraphIndex(apply_parameters(model, artifact))
    biases = {n.input[2] for n in index.of_type("Conv")}
    assert len(biases) == 1
    np.testing.assert_array_equal(index.constant(biases.pop()), value)
    assert "conv.bias" not in index.initializers


def test_a_second_call_with_another_constant_is_refused() -> None:
    own = random_array(4, seed=1)
    graph = LayerGraph()
    graph.conv("conv", "x", "once", random_array(4, 4, 1, 1), own)
    graph.stored["folded"] = own * np.float32(2)
    graph.add("Conv", ["once", "conv.weight", "folded"], "output", "conv")
    model = graph.model(["batch", 4, 2, 2], "output", ["batch", 4, 2, 2])
    artifact = layer_artifact(graph.weights, {"conv:input": 0.1})
    artifact = replace(artifact, parameters={"conv.bias": RetrainedParameter(own, digest_array(own))})
    with pytest.raises(ExportError, match="1 constants of that size hold other values"):
        apply_parameters(model, artifact)


@pytest.mark.parametrize("kind", ["weight", "bias"])
def test_a_whole_norm_operator_is_a_place_too(kind: str) -> None:
    own = {"weight": random_array(4, seed=1), "bias": random_array(4, seed=2)}
    value = random_array(4, seed=3)
    graph = LayerGraph()
    graph.stored |= own
    graph.add("LayerNormalization", ["x", "weight", "bias"], "output", "norm")
    model = graph.model(["batch", 4], "output", ["batch", 4])
    changed = {f"norm.{kind}": RetrainedParameter(value, digest_array(own[kind]))}
    artifact = replace(layer_artifact({"a": np.eye(2, dtype=np.float32)}, {}), parameters=changed)
    index = GraphIndex(apply_parameters(model, artifact))
    held = dict(zip(("x", "weight", "bias"), index.producers["output"].input, strict=True))
    np.testing.assert_array_equal(index.constant(held.pop(kind)), value)
    assert list(held.items()) == [(k, k) for k in held]
