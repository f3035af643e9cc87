from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from gacq_deploy.artifact.artifact import CalibrationArtifact
from gacq_deploy.engines.catalogue import engine_named
from gacq_deploy.engines.open import open_engine
from gacq_deploy.errors import ExportError
from gacq_deploy.export.cpu_flavour import signed_form, to_cpu_flavour
from gacq_deploy.export.qdq import expected_sites, insert_qdq, quantized_sites
from gacq_deploy.graph.index import GraphIndex, module_of
from gacq_deploy.lint.lint import lint_graph
from gacq_deploy.models.base import Denoiser
from gacq_deploy.spec import TensorParams
from tests.support.graphs.layer_graphs import LayerGraph, layer_artifact, random_array
from tests.support.models.tiny import with_params


@pytest.fixture(scope="module")
def signed(exported: onnx.ModelProto, artifact: CalibrationArtifact) -> onnx.ModelProto:
    return insert_qdq(exported, artifact, placement="output")


@pytest.fixture(scope="module")
def flavour(signed: onnx.ModelProto) -> onnx.ModelProto:
    return to_cpu_flavour(signed)


def _run(model: onnx.ModelProto, denoiser: Denoiser, *, optimize: bool) -> np.ndarray:
    inputs = {k: v.numpy() for k, v in denoiser.example_inputs(5, seed=3).items()}
    with open_engine("ort-cpu", model.SerializeToString(), threads=1, optimize=optimize) as engine:
        return engine.run(inputs)["output"]


def test_every_planned_layer_runs_in_integers(
    flavour: onnx.ModelProto, artifact: CalibrationArtifact
) -> None:
    kernels = {
        use.layer.codes: use for use in engine_named("ort-cpu").executed_kernels(flavour.SerializeToString())
    }
    assert set(kernels) == {f"{m}:weight.codes" for m in artifact.plan.modules}
    assert all(use.integer for use in kernels.values())
    convolutions = {use.kernel for use in kernels.values() if use.layer.op_type == "Conv"}
    assert convolutions == {"QLinearConv"}


def test_twin_computes_the_same_bits(flavour: onnx.ModelProto, denoiser: Denoiser) -> None:
    mine, form = (_run(m, denoiser, optimize=False) for m in (flavour, signed_form(flavour)))
    np.testing.assert_array_equal(mine, form)


def test_flavour_computes_what_the_signed_graph_does_but_for_the_bias(
    signed: onnx.ModelProto, flavour: onnx.ModelProto
) -> None:
    form, before = GraphIndex(signed_form(flavour)), GraphIndex(signed)
    changed = {t for t in before.initializers if t not in form.initializers}
    added = {t for t in form.initializers if t not in before.initializers}
    assert all(t.endswith(".bias") for t in changed)
    assert len(added) == 3 * len(changed)
    kept = [t for t in before.initializers if t not in changed]
    assert all(before.initializers[t] == form.initializers[t] for t in kept)


def test_activations_are_uint8_around_128_and_weights_int8(
    flavour: onnx.ModelProto, artifact: CalibrationArtifact
) -> None:
    index = GraphIndex(flavour)
    for node in index.of_type("QuantizeLinear"):
        zero = index.tensor(node.input[2])
        assert zero is not None
        assert (zero.data_type, index.constant(node.input[2])) == (TensorProto.UINT8, 128)
    for module in artifact.plan.modules:
        assert index.initializers[f"{module}:weight.codes"].data_type == TensorProto.INT8
    assert quantized_sites(flavour) >= set(expected_sites(artifact.plan, "output"))


def test_bias_is_rounded_to_the_accumulators_grid(signed: onnx.ModelProto, flavour: onnx.ModelProto) -> None:
    index, before = GraphIndex(flavour), GraphIndex(signed)
    checked = 0
    for node in index.of_type("Conv"):
        name = f"{module_of(node)}:bias"
        if f"{name}.codes" not in index.initializers:
            continue
        codes, scale = index.constant(f"{name}.codes"), index.constant(f"{name}.scale")
        assert codes is not None
        assert scale is not None
        pair, weight = (index.producers[node.input[i]] for i in (0, 1))
        np.testing.assert_array_equal(scale, index.constant(pair.input[1]) * index.constant(weight.input[1]))
        original = before.constant(f"denoiser.{module_of(node)}.bias")
        assert codes.dtype == np.int32
        assert np.abs(codes * scale.astype(np.float64) - original).max() <= scale.max() / 2 * (1 + 1e-6)
        checked += 1
    assert (
        checked == sum(n.op_type == "Conv" for n in signed.graph.node) - 2
    )  # conv_in and conv_out are float


def test_flavour_is_as_far_from_float_as_the_signed_graph(
    exported: onnx.ModelProto, signed: onnx.ModelProto, flavour: onnx.ModelProto, denoiser: Denoiser
) -> None:
    reference = _run(exported, denoiser, optimize=True)
    far = [np.linalg.norm(_run(m, denoiser, optimize=True) - reference) for m in (signed, flavour)]
    assert min(far) > 0
    assert abs(20 * np.log10(far[0] / far[1])) < 0.5


def _one_conv(weight: np.ndarray, bias: np.ndarray | None) -> tuple[onnx.ModelProto, CalibrationArtifact]:
    graph = LayerGraph()
    graph.conv("a", "x", "output", weight, bias)
    artifact = layer_artifact(graph.weights, {"a:input": 0.02, "a:output": 0.05})
    shape = ["batch", weight.shape[1], 6, 6]
    return graph.model(shape, "output", ["batch", weight.shape[0], 6, 6]), artifact


def test_a_convolution_without_bias_needs_none() -> None:
    model, artifact = _one_conv(random_array(3, 2, 3, 3), None)
    result = to_cpu_flavour(insert_qdq(model, artifact, placement="output"))
    assert [u.kernel for u in engine_named("ort-cpu").executed_kernels(result.SerializeToString())] == [
        "QLinearConv"
    ]


def test_a_dead_channel_cannot_overflow_the_accumulator() -> None:
    weight = random_array(3, 2, 3, 3)
    model, artifact = _one_conv(weight, random_array(3, seed=1))
    params = artifact.params[next(e.site for e in artifact.plan.of_role("weight"))]
    assert params.codes is not None
    scale, codes = params.scale.copy(), params.codes.copy()
    scale[1], codes[1] = 1e-12, 0
    artifact = with_params(artifact, {"a:weight": TensorParams(scale, codes)})
    result = to_cpu_flavour(insert_qdq(model, artifact, placement="output"))
    assert quantized_sites(result) == set(expected_sites(artifact.plan, "output"))
    findings = lint_graph(result, target="ort-cpu")
    assert [(f.rule, f.severity) for f in findings] == [("conv-output-float", "warn")]
    x = random_array(2, 2, 6, 6, seed=3)
    outputs = {}
    for optimize in (True, False):
        for name, graph in (("flavour", result), ("form", signed_form(result))):
            with open_engine("ort-cpu", graph.SerializeToString(), threads=1, optimize=optimize) as engine:
                outputs[name, optimize] = engine.run({"x": x})["output"]
    assert all(np.array_equal(o, outputs["form", False]) for o in outputs.values())
    step = np.float32(0.05)
    expected = np.clip(np.rint(random_array(3, seed=1)[1] / step), -128, 127) * step
    np.testing.assert_allclose(outputs["flavour", True][:, 1], expected, rtol=1e-6)


def test_graphs_of_another_form_are_refused(
    exported: onnx.ModelProto,
    artifact: CalibrationArtifact,
    flavour: onnx.ModelProto,
    signed: onnx.ModelProto,
) -> None:
    with pytest.raises(ExportError, match="No convolution"):
        to_cpu_flavour(exported)
    with pytest.raises(ExportError, match="No convolution"):
        to_cpu_flavour(insert_qdq(exported, artifact, placement="input"))
    with pytest.raises(ExportError, match="is not int8"):
        to_cpu_flavour(flavour)
    with pytest.raises(ExportError, match="is not uint8"):
        signed_form(signed)
