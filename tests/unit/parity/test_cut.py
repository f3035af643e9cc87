from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from gacq_deploy.engines.open import open_engine
from gacq_deploy.parity.cut import cut_at_quantizers, expose_quantized
from gacq_deploy.parity.local import LocalReference, compare_segments

STEP = 0.1


def chain() -> onnx.ModelProto:
    """sample -> Q/DQ a -> x2 -> Q/DQ b -> +1 -> output; the residual of `a` joins in at the end."""
    inits = [
        numpy_helper.from_array(np.float32(STEP), "s"),
        numpy_helper.from_array(np.int8(0), "z"),
        numpy_helper.from_array(np.float32(2), "two"),
    ]
    nodes = []
    for site, source in (("a:input", "sample"), ("b:input", "double")):
        nodes += [
            helper.make_node("QuantizeLinear", [source, "s", "z"], [f"{site}.q"], f"{site}/QuantizeLinear"),
            helper.make_node(
                "DequantizeLinear", [f"{site}.q", "s", "z"], [f"{site}.dq"], f"{site}/DequantizeLinear"
            ),
        ]
    nodes.insert(2, helper.make_node("Mul", ["a:input.dq", "two"], ["double"], "mul"))
    nodes.append(helper.make_node("Add", ["b:input.dq", "a:input.dq"], ["output"], "add"))
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 8]) for n in ("sample", "output")]
    graph = helper.make_graph(nodes, "chain", value[:1], value[1:], inits)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def quantize(x: np.ndarray) -> np.ndarray:
    return (np.clip(np.rint(x / np.float32(STEP)), -128, 127) * np.float32(STEP)).astype(np.float32)


@pytest.fixture
def reference() -> LocalReference:
    sample = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    a = quantize(sample)
    b = quantize(a * 2)
    return LocalReference(
        {"sample": sample}, b + a, {"a:input": a, "b:input": b}, {"a:input": STEP, "b:input": STEP}
    )


def compare(
    reference: LocalReference, model: onnx.ModelProto, planned: tuple[str, ...] = ("a:input", "b:input")
):
    cut = cut_at_quantizers(model, reference.recorded)
    with open_engine("ort-cpu", cut.model.SerializeToString(), threads=1) as engine:
        return compare_segments(engine, cut, reference, planned=planned, rtol=1e-4)


def test_a_cut_graph_gives_back_what_the_reference_recorded(reference: LocalReference) -> None:
    result = compare(reference, chain())
    assert [s.site for s in result.segments] == ["a:input", "b:input", "output"]
    assert result.metrics()["equal_share"] == 1
    assert result.metrics()["output_relative_error"] < 1e-6
    assert result.unchecked == ()


def test_the_graph_given_is_left_as_it_was(reference: LocalReference) -> None:
    model = chain()
    before = model.SerializeToString()
    cut_at_quantizers(model, reference.recorded)
    expose_quantized(model)
    assert model.SerializeToString() == before


def test_an_error_stays_in_its_segment(reference: LocalReference) -> None:
    model = chain()
    (two,) = [t for t in model.graph.initializer if t.name == "two"]
    two.CopyFrom(numpy_helper.from_array(np.float32(2.5), "two"))
    shares = {s.site: s.equal_share for s in compare(reference, model).segments}
    assert shares["a:input"] == 1
    assert shares["b:input"] is not None
    assert shares["b:input"] < 0.9
    assert shares["output"] == 1


def test_every_site_without_a_segment_is_named(reference: LocalReference) -> None:
    assert compare(reference, chain(), ("a:input", "b:input", "c:input")).unchecked == ("c:input",)
    without = LocalReference(
        reference.inputs, reference.output, {"a:input": reference.recorded["a:input"]}, reference.scales
    )
    assert compare(without, chain()).unchecked == ("b:input",)


def test_a_recording_off_its_grid_is_named(reference: LocalReference) -> None:
    recorded = {**reference.recorded, "b:input": reference.recorded["b:input"] + np.float32(STEP / 3)}
    off = LocalReference(reference.inputs, reference.output, recorded, reference.scales)
    assert compare(off, chain()).unchecked == ("b:input (recording off the grid)",)


def test_a_rounding_tie_is_one_step(reference: LocalReference) -> None:
    moved = reference.recorded["b:input"].copy()
    moved[0, 0] += np.float32(STEP)
    result = compare(
        LocalReference(
            reference.inputs, reference.output, {**reference.recorded, "b:input": moved}, reference.scales
        ),
        chain(),
    )
    record = result.segments[1]
    assert record.equal_share == pytest.approx(23 / 24)
    assert record.steps == pytest.approx(1, abs=1e-4)


def test_exposed_tensors_are_the_recordings(reference: LocalReference) -> None:
    exposed = expose_quantized(chain())
    with open_engine("ort-cpu", exposed.model.SerializeToString(), threads=1, optimize=False) as engine:
        results = engine.run(reference.inputs)
    for segment in exposed.segments:
        np.testing.assert_array_equal(results[segment.computed], reference.recorded[segment.site])
    assert "output" in results
