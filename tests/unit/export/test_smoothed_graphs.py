"""A smoothed layer in the graph: one multiplication a tensor where no norm carries it, and what torch computes."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

from gacq_deploy.artifact.artifact import load_artifact
from gacq_deploy.build_trt.compiler import compile_graph
from gacq_deploy.build_trt.float16.convert import to_half
from gacq_deploy.build_trt.layers import int8_nodes
from gacq_deploy.build_trt.options import CompileOptions, ShapeRange
from gacq_deploy.engines.open import open_engine
from gacq_deploy.errors import ArtifactError
from gacq_deploy.export.cpu_flavour import to_cpu_flavour
from gacq_deploy.export.qdq import Placement, expected_sites, insert_qdq, quantized_sites
from gacq_deploy.export.stage import euclidean_error
from gacq_deploy.graph.index import GraphIndex
from gacq_deploy.lint.lint import lint_graph
from gacq_deploy.parity.cut import cut_at_quantizers
from gacq_deploy.parity.exact import CANONICAL, CPU, compare_quantized_file
from gacq_deploy.parity.layout import fit_recordings
from gacq_deploy.parity.local import LocalReference, compare_segments
from gacq_deploy.sensitivity.variants import Variants
from gacq_deploy.spec import Array, Site
from gacq_deploy.storage.documents import read_json
from gacq_deploy.storage.files import write_json
from tests.support.artifacts.smoothed import SmoothedModel, smooth

pytestmark = pytest.mark.slow
model_of = cache(smooth)


@pytest.fixture(params=["dit-w8a8", "sd15-w8a8"])
def model(request: pytest.FixtureRequest) -> SmoothedModel:
    return model_of(request.param)


@pytest.fixture
def dit() -> SmoothedModel:
    return model_of("dit-w8a8")


def multiplications(graph: ModelProto) -> list[str]:
    return [n.name for n in graph.graph.node if n.op_type == "Mul" and n.name.endswith("/Smooth")]


def answer(graph: ModelProto, inputs: dict[str, Array]) -> Array:
    with open_engine("ort-cpu", graph.SerializeToString(), threads=1) as engine:
        return engine.run(inputs)["output"]


def test_one_multiplication_a_tensor_and_none_behind_a_norm(model: SmoothedModel) -> None:
    graph = model.graph()
    smoothing = model.artifact.smoothing
    folded = {site.module for site, s in smoothing.items() if s.norm is not None}
    names = multiplications(graph)
    assert len(names) == len(set(names))
    assert not {n.partition(":")[0] for n in names} & folded
    explicit = {s.factor.tobytes() for s in smoothing.values() if s.norm is None}
    assert len(names) == len(explicit) > 0
    assert quantized_sites(graph) >= set(expected_sites(model.artifact.plan, "input"))
    assert all(lint_graph(graph, target=target) == [] for target in ("tensorrt", "openvino"))
    assert to_half(graph).float32_nodes is not None
    if folded:
        assert {n.rpartition(".")[2] for n in {s.norm for s in smoothing.values() if s.norm}} == {
            "norm1",
            "norm2",
            "norm3",
        }
        assert "to_q" in {m.rpartition(".")[2] for m in folded}


@pytest.mark.parametrize("placement", ["input", "output"])
def test_onnx_runtime_computes_what_torch_does(model: SmoothedModel, placement: Placement) -> None:
    graph, inputs = model.graph(placement), model.inputs()
    graph = to_cpu_flavour(graph) if placement == "output" else graph
    exact, ours = answer(model.float_model, inputs), model.answer(placement)
    theirs = answer(graph, inputs)
    error = euclidean_error(ours, exact)
    assert 1e-5 < error < 0.1
    # random convolutions amplify a last bit: both are equally far from float, and the segments below agree
    assert euclidean_error(theirs, exact) == pytest.approx(error, rel=0.05)
    flavour = CANONICAL if placement == "input" else CPU
    assert compare_quantized_file(model.artifact, model.float_model, graph, flavour) == []


def test_every_segment_ends_in_the_smoothed_tensor_that_torch_quantizes(model: SmoothedModel) -> None:
    graph, (recorded, output) = model.graph(), model.recording()
    scales = {
        str(e.site): float(model.artifact.params[e.site].scale) for e in model.artifact.plan.of_role("input")
    }
    reference = LocalReference(model.inputs(), output, fit_recordings(graph, recorded), scales)
    cut = cut_at_quantizers(graph, reference.recorded)
    with open_engine("ort-cpu", cut.model.SerializeToString(), threads=1) as engine:
        result = compare_segments(engine, cut, reference, planned=scales, rtol=1e-4)
    assert result.unchecked == ()
    metrics = result.metrics()
    assert metrics["equal_share"] > 0.999
    assert metrics["output_relative_error"] < 1e-5


def test_parity_sees_a_wrong_a_missing_and_a_foreign_smoothing(dit: SmoothedModel) -> None:
    def differences(graph: ModelProto) -> str:
        return "\n".join(map(str, compare_quantized_file(dit.artifact, dit.float_model, graph, CANONICAL)))

    wrong = dit.graph()
    stored = next(t for t in wrong.graph.initializer if t.name.endswith(".smoothing"))
    value = numpy_helper.to_array(stored).copy()
    value[0] *= np.float32(1.0001)
    stored.CopyFrom(numpy_helper.from_array(value, stored.name))
    assert "smoothing: 1 of" in differences(wrong)
    missing = dit.graph()
    node = next(n for n in missing.graph.node if n.name.endswith("/Smooth"))
    for reader, position in GraphIndex(missing).readers(node.output[0]):
        reader.input[position] = node.input[0]
    assert "its input is not smoothed" in differences(missing)
    read = dit.graph()
    node = next(n for n in read.graph.node if n.name.endswith("/Smooth"))
    last = next(n for n in reversed(read.graph.node) if n.op_type == "Add")
    assert last.input[1] != node.output[0]
    read.graph.node.append(onnx.helper.make_node("Neg", [node.output[0]], ["aside"]))
    assert "read beside its quantizer" in differences(read)
    foreign = compare_quantized_file(dit.plain, dit.float_model, dit.graph(), CANONICAL)
    assert any("(Mul)" in str(d) for d in foreign)


def test_the_artifact_keeps_it(model: SmoothedModel, tmp_path: Path) -> None:
    model.artifact.save(tmp_path / "artifact")
    loaded = load_artifact(tmp_path / "artifact")
    assert loaded.smoothing.keys() == model.artifact.smoothing.keys()
    for site, smoothing in model.artifact.smoothing.items():
        np.testing.assert_array_equal(loaded.smoothing[site].factor, smoothing.factor)
        assert (loaded.smoothing[site].alpha, loaded.smoothing[site].norm) == (0.5, smoothing.norm)
    assert compare_quantized_file(loaded, model.float_model, model.graph(), CANONICAL) == []
    model.plain.save(tmp_path / "plain")
    assert not load_artifact(tmp_path / "plain").smoothing


def test_an_artifact_whose_smoothing_was_altered_is_refused(dit: SmoothedModel, tmp_path: Path) -> None:
    dit.artifact.save(tmp_path / "artifact")
    path = tmp_path / "artifact" / "manifest.json"
    manifest = read_json(path, what="", hint="")
    entry = next(e for e in manifest["plan"] if e["smoothing"])
    entry["smoothing"]["alpha"] = 0.9
    write_json(path, manifest)
    with pytest.raises(ArtifactError, match="manifest"):
        load_artifact(tmp_path / "artifact")


def test_sensitivity_may_leave_any_layer_float(model: SmoothedModel) -> None:
    """Of a smoothed group too, and one role alone: every variant is still the model, but for rounding."""
    variants, inputs = Variants(model.float_model, model.artifact, CANONICAL), model.inputs()
    assert variants.without(()).SerializeToString() == model.graph().SerializeToString()
    exact = answer(variants.only(()), inputs)
    assert euclidean_error(exact, answer(model.float_model, inputs)) < 1e-5
    for module in [m for m in model.artifact.plan.modules if m.endswith(("to_q", "net.2"))][:3]:
        for sites in ([Site(module, "weight")], [Site(module, "input")], variants.sites_of(module)):
            graph = variants.only(sites)
            assert quantized_sites(graph) == set(sites)
            assert 0 < euclidean_error(answer(graph, inputs), exact) < 0.05
        assert euclidean_error(answer(variants.without([module]), inputs), exact) < 0.1


@pytest.mark.rtx
def test_as_many_layers_compile_to_int8_as_without(dit: SmoothedModel, tmp_path: Path) -> None:
    shapes = {name: value.shape for name, value in dit.inputs().items()}
    profile = {name: ShapeRange(min=s, opt=s, max=s) for name, s in shapes.items()}
    options = CompileOptions(backend="tensorrt-rtx", profiles=(profile,))
    compiled = {}
    for name, graph in {
        "smoothed": dit.graph(),
        "plain": insert_qdq(dit.float_model, dit.plain, placement="input"),
    }.items():
        (tmp_path / name).mkdir()
        path = tmp_path / name / "int8.onnx"
        onnx.save_model(to_half(graph).model, str(path))
        compiled[name] = compile_graph(path, options, folder=tmp_path / name)
    products = {name: sorted(int8_nodes(c.layers)) for name, c in compiled.items()}
    assert len([x for x in compiled["smoothed"].layers if x.is_product and x.int8]) >= 8
    assert products["smoothed"] == products["plain"]
