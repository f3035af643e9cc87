from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from gacq_deploy.artifact.artifact import CalibrationArtifact
from gacq_deploy.build_trt.float16.convert import HalfGraph, to_half
from gacq_deploy.build_trt.float16.ranges import measure_ranges, with_extremes
from gacq_deploy.engines.open import open_engine
from gacq_deploy.errors import ExportError
from gacq_deploy.export.float_graph.graph import float_graph
from gacq_deploy.export.qdq import insert_qdq
from gacq_deploy.graph.files import read_graph, write_graph
from gacq_deploy.graph.index import GraphIndex, attribute, module_of
from gacq_deploy.lint.lint import lint_graph, predict_layers
from gacq_deploy.metrics.arrays import sqnr_db
from tests.support.graphs.graph_sketch import CODES, Sketch
from tests.support.models import architectures

FLOAT, HALF, INT64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64
ROUNDING = ("QuantizeLinear", "DequantizeLinear")
rng = np.random.default_rng(0)


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    with open_engine("ort-cpu", model.SerializeToString(), threads=1) as engine:
        return engine.run(feeds)[engine.outputs[0].name]


def feeds_for(model: onnx.ModelProto, rows: int = 3) -> dict[str, np.ndarray]:
    feeds = {}
    for info in model.graph.input:
        kind = info.type.tensor_type
        shape = [d.dim_value if d.HasField("dim_value") else rows for d in kind.shape.dim]
        small = rng.integers(0, 4, shape) if info.name != "timestep" else rng.integers(0, 1000, shape)
        feeds[info.name] = small if kind.elem_type == INT64 else rng.standard_normal(shape).astype(np.float32)
    return feeds


def shaped(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give the outputs their shapes, which the checker wants."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    shapes = {v.name: v for v in (*inferred.value_info, *inferred.output)}
    for output in model.graph.output:
        output.CopyFrom(shapes[output.name])
    return model


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    return {
        i.name: i.type.tensor_type.elem_type for i in (*graph.input, *graph.value_info, *graph.output)
    } | {t.name: t.data_type for t in graph.initializer}


def assert_well_made(half: HalfGraph, before: onnx.ModelProto) -> None:
    """What holds for every half graph, whatever it was made from."""
    model, graph = half.model, half.model.graph
    onnx.checker.check_model(model, full_check=True)
    assert [v.SerializeToString() for v in graph.input] == [v.SerializeToString() for v in before.graph.input]
    assert [v.SerializeToString() for v in graph.output] == [
        v.SerializeToString() for v in before.graph.output
    ]
    assert model.opset_import == before.opset_import
    names = [n.name for n in graph.node]
    assert len(set(names)) == len(names)
    old = {n.name: n for n in before.graph.node}
    assert [n for n in names if n in old] == list(old), "nodes are kept, in their order"
    casts = [n for n in graph.node if n.name not in old]
    assert {n.op_type for n in casts} <= {"Cast", "Constant"}
    assert not [
        t for t, c in Counter((n.input[0], attribute(n, "to", 0)) for n in casts if n.input).items() if c > 1
    ]
    by_output = {n.output[0]: n for n in casts}
    assert not [n.name for n in casts if n.input and n.input[0] in by_output], "a Cast of our own Cast"
    for node in graph.node:
        if node.name in old:
            assert module_of(node) == module_of(old[node.name])
    assert_only_islands_are_float(half)


def assert_only_islands_are_float(half: HalfGraph) -> None:
    types, float32_nodes = types_of(half.model), {i.node for i in half.float32_nodes}
    for node in half.model.graph.node:
        if node.op_type in (*ROUNDING, "Cast", "Constant", "Shape") or node.name in float32_nodes:
            continue
        assert FLOAT not in [types.get(n) for n in node.output], node.name


# models as they are exported


@pytest.mark.parametrize("quantized", [False, True])
def test_exported_unet_in_half(
    float_model: onnx.ModelProto, artifact: CalibrationArtifact, quantized: bool
) -> None:
    model = insert_qdq(float_model, artifact, placement="input") if quantized else float_model
    stored = model.SerializeToString(deterministic=True)
    half = to_half(model)
    assert model.SerializeToString(deterministic=True) == stored, "the float32 graph was changed"
    assert_well_made(half, model)
    feeds = feeds_for(model, rows=4)
    exact, expected, got = run(float_model, feeds), run(model, feeds), run(half.model, feeds)
    assert got.dtype == np.float32
    if (
        quantized
    ):  # a half activation on the edge of two codes takes the other one: the error is as large as before
        assert abs(sqnr_db(exact, got) - sqnr_db(exact, expected)) < 1.0
    else:
        assert sqnr_db(expected, got) > 50


def test_scales_stay_float32_between_casts(
    float_model: onnx.ModelProto, artifact: CalibrationArtifact
) -> None:
    model = insert_qdq(float_model, artifact, placement="input")
    before, index = GraphIndex(model), GraphIndex(to_half(model).model)
    for node in index.of_type(*ROUNDING):
        scale = index.constant(node.input[1])
        assert scale is not None
        assert scale.dtype == np.float32
        assert before.constant(node.input[1]) == pytest.approx(scale, abs=0)
        if node.op_type == "QuantizeLinear":
            source = index.producer(node.input[0])
            assert source is not None
            assert (source.op_type, attribute(source, "to", 0)) == ("Cast", FLOAT)
            assert source.name == f"{source.input[0]}/to_float"
        else:
            (reader,) = {u.node.name: u.node for u in index.readers(node.output[0])}.values()
            assert (reader.op_type, attribute(reader, "to", 0)) == ("Cast", HALF)
            assert module_of(reader) == module_of(node)


def test_lint_sees_through_the_casts(float_model: onnx.ModelProto, artifact: CalibrationArtifact) -> None:
    model = insert_qdq(float_model, artifact, placement="input")
    half = to_half(model).model
    assert lint_graph(half, target="tensorrt") == lint_graph(model, target="tensorrt")
    assert predict_layers(half) == predict_layers(model)


def test_dynamic_batch_is_kept_in_the_value_infos(float_model: onnx.ModelProto) -> None:
    half = to_half(float_model).model
    shapes = {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in half.graph.value_info
    }
    assert shapes["sample.half"][0] == "batch"
    convolutions = [n.output[0] for n in half.graph.node if n.op_type == "Conv" and n.output[0] in shapes]
    assert convolutions
    assert all(shapes[name][0] == "batch" for name in convolutions)


def test_timestep_is_embedded_in_float32(float_model: onnx.ModelProto) -> None:
    half = to_half(float_model)
    kept = {i.node: i for i in half.float32_nodes}
    assert {i.why for i in kept.values()} == {"timestep"}
    assert {"Sin", "Cos"} <= {n.op_type for n in float_model.graph.node if n.name in kept}
    assert not [
        n for n in float_model.graph.node if n.name in kept and n.op_type in ("Gemm", "MatMul", "Conv")
    ]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["small_sdxl_unet", "small_dit"])
def test_other_architectures_in_half(kind: str) -> None:
    model = float_graph(getattr(architectures, kind)())
    half = to_half(model)
    assert_well_made(half, model)
    feeds = feeds_for(model)
    if kind == "small_sdxl_unet":  # sizes of pictures go through a sine, too
        assert {i.why for i in half.float32_nodes} == {"timestep", "angle"}
        feeds["time_ids"] = (feeds["time_ids"] * 1024).round()
    assert sqnr_db(run(model, feeds), run(half.model, feeds)) > 45


# what must stay in float32


def test_angle_of_an_input() -> None:
    s = Sketch()
    s.node("Mul", ["x", s.store("frequency", 100.0)], "scaled")
    s.node("Sin", ["scaled"], "waves")
    s.node("Conv", ["waves", s.store("w", rng.standard_normal((4, 4, 1, 1)))], "y")
    half = to_half(shaped(s.model()))
    assert {(i.node, i.why) for i in half.float32_nodes} == {("scaled", "angle"), ("waves", "angle")}


def test_sine_of_an_activation_is_half() -> None:
    s = Sketch()
    s.conv("x", "mixed", weight=s.store("w", rng.standard_normal((4, 4, 3, 3))))
    s.node("Sin", ["mixed"], "y")
    assert to_half(shaped(s.model())).float32_nodes == ()


def test_integers_that_meet_the_sample_leave_their_island() -> None:
    s = Sketch()
    s.node("Shape", ["x"], "shape")
    s.node("Cast", ["shape"], "sizes", to=FLOAT)
    s.node("ReduceProd", ["sizes"], "size", keepdims=0)
    s.node("Div", ["x", "size"], "y")
    half = to_half(shaped(s.model()))
    assert {(i.node, i.why) for i in half.float32_nodes} == {("sizes", "timestep"), ("size", "timestep")}
    assert_well_made(half, shaped(s.model()))


def test_weight_beyond_the_largest_half() -> None:
    s = Sketch()
    weight = np.full((4, 4, 1, 1), 1e5, np.float32)
    s.node("Mul", ["x", s.store("small", 1e-5)], "low")
    s.node("Conv", ["low", s.store("w", weight)], "high")
    s.node("Tanh", ["high"], "y")
    half = to_half(shaped(s.model()))
    assert [(i.node, i.why, i.detail) for i in half.float32_nodes] == [
        ("high", "constant", "|w| reaches 100000")
    ]
    assert types_of(half.model)["w"] == FLOAT
    x = feeds_for(shaped(s.model()))
    assert sqnr_db(run(shaped(s.model()), x), run(half.model, x)) > 40


def test_mask_of_the_smallest_float_keeps_its_softmax() -> None:
    s = Sketch(inputs={"x": [2, 4]})
    mask = s.store("mask", [[0, 0, -3.4e38, 0], [-3.4e38] * 4])
    s.node("Unsqueeze", [mask, s.store("axis", [0], np.int64)], "lifted")
    s.node("Add", ["x", "lifted"], "masked")
    s.node("Softmax", ["masked"], "shares")
    s.node("Mul", ["shares", "shares"], "y")
    half = to_half(shaped(s.model()))
    assert [i.node for i in half.float32_nodes] == ["lifted", "masked", "shares"]
    x = feeds_for(shaped(s.model()))
    np.testing.assert_allclose(run(shaped(s.model()), x), run(half.model, x), atol=1e-3)


def test_infinity_is_a_half() -> None:
    s = Sketch(inputs={"x": [2, 4]})
    s.node("Add", ["x", s.store("mask", [0, 0, -np.inf, 0])], "masked")
    s.node("Softmax", ["masked"], "y")
    half = to_half(shaped(s.model()))
    assert half.float32_nodes == ()
    assert run(half.model, feeds_for(shaped(s.model())))[:, 2].max() == 0


def test_epsilon_that_half_cannot_hold() -> None:
    s = Sketch()
    s.node("Mul", ["x", s.store("nothing", 0.0)], "zeros")
    s.node("Add", ["zeros", s.store("epsilon", 1e-9)], "safe")
    s.node("Sqrt", ["safe"], "root")
    s.node("Sigmoid", ["root"], "y")
    half = to_half(shaped(s.model()))
    assert [(i.node, i.why) for i in half.float32_nodes] == [("safe", "constant")]
    assert half.float32_nodes[0].detail == "epsilon is 1e-09, zero in half"


def test_nan_is_refused() -> None:
    s = Sketch()
    s.node("Add", ["x", s.store("b", np.nan)], "y")
    with pytest.raises(ExportError, match="'b' holds NaN"):
        to_half(shaped(s.model()))


def test_weights_that_become_zero_are_counted() -> None:
    s = Sketch()
    s.node("Add", ["x", s.store("b", [1.0, 1e-9, -1e-9, 0.0, 6e-8, 1.0, 1.0, 1.0])], "y")
    half = to_half(shaped(s.model()))
    assert half.flushed == {"b": 2}
    assert half.float32_nodes == ()


def measured() -> onnx.ModelProto:
    s = Sketch()
    s.node("Exp", ["x"], "grown")
    s.node("Mul", ["grown", s.store("k", 2.0)], "doubled")
    s.node("Log", ["doubled"], "shrunk")
    s.node("Tanh", ["shrunk"], "y")
    return shaped(s.model())


@pytest.mark.parametrize(
    ("ranges", "float32_nodes"),
    [
        ({"doubled": 20_000.0}, ["doubled", "shrunk"]),
        ({"doubled": 16_000.0}, []),
        ({"grown": 1e9, "doubled": 1.0, "unknown": 1e9}, ["grown", "doubled"]),
        ({"grown": 1e9}, ["grown", "doubled", "shrunk"]),
        ({"grown": np.inf, "doubled": np.nan}, []),
    ],
)
def test_readers_and_writers_of_a_wide_tensor_stay_float32(
    ranges: dict[str, float], float32_nodes: list[str]
) -> None:
    half = to_half(measured(), ranges=ranges)
    assert [i.node for i in half.float32_nodes if i.why == "range"] == float32_nodes
    assert_well_made(half, measured())


def test_margin() -> None:
    assert to_half(measured(), ranges={"doubled": 60_000.0}, margin=1.0).float32_nodes == ()


# single operators


def test_resize_scales_and_shapes_stay_what_they_are() -> None:
    s = Sketch()
    s.node("Resize", ["x", "", s.store("scales", [1, 1, 2, 2])], "large", mode="nearest")
    s.node(
        "Pad", ["large", s.store("pads", [0, 0, 1, 1, 0, 0, 1, 1], np.int64), s.store("fill", 0.5)], "padded"
    )
    s.node(
        "Clip",
        [
            "padded",
            s.store("low", -1.0),
            "",
        ],
        "y",
    )
    half = to_half(shaped(s.model()))
    assert_well_made(half, shaped(s.model()))
    kinds = {t.name: t.data_type for t in half.model.graph.initializer}
    assert kinds == {"scales": FLOAT, "pads": INT64, "fill": HALF, "low": HALF}
    x = feeds_for(shaped(s.model()))
    np.testing.assert_allclose(run(shaped(s.model()), x), run(half.model, x), rtol=1e-3)


def test_tensor_shared_by_float_and_half_readers_is_stored_twice() -> None:
    s = Sketch()
    data = s.pair("x", "a")
    s.node("Mul", [data, "a.scale"], "y")
    half = to_half(shaped(s.model()))
    kinds = {t.name: t.data_type for t in half.model.graph.initializer if t.data_type != TensorProto.INT8}
    assert kinds == {"a.scale": FLOAT, "a.scale.half": HALF}
    assert_well_made(half, shaped(s.model()))


@pytest.mark.parametrize("form", ["value", "value_float", "value_floats"])
def test_constant_nodes(form: str) -> None:
    s = Sketch()
    value: Any = {
        "value": numpy_helper.from_array(np.float32(0.1)), "value_float": 0.1, "value_floats": [0.1],
    }[form]  # fmt: skip
    s.node("Constant", [], "k", **{form: value})
    data = s.node("Add", ["x", "k"], "shifted")
    zero = s.store("zero", 0 if form != "value_floats" else [0], np.int8)
    s.node("QuantizeLinear", [data, "k", zero], "codes", axis=-1)
    s.node("DequantizeLinear", ["codes", "k", zero], "y", axis=-1)
    if form == "value_floats":  # one scale a channel needs eight of them
        s.nodes[0].attribute[0].floats.extend([0.1] * 7)
        s.stored[-1].CopyFrom(numpy_helper.from_array(np.zeros(8, np.int8), "zero"))
    half = to_half(shaped(s.model()))
    onnx.checker.check_model(half.model, full_check=True)
    index = GraphIndex(half.model)
    one, other = index.constant("k"), index.constant("k.half")
    assert one is not None
    assert other is not None
    assert (one.dtype, other.dtype) == (np.float32, np.float16)
    run(half.model, feeds_for(shaped(s.model())))


def test_casts_of_the_graph_itself() -> None:
    s = Sketch()
    s.node("Greater", ["x", s.store("zero", 0.0)], "positive")
    s.node("Cast", ["positive"], "ones", to=FLOAT)
    s.node("Cast", ["x"], "rounded", to=INT64)
    s.node("Cast", ["rounded"], "whole", to=FLOAT)
    s.node("Cast", ["whole"], "again", to=FLOAT)
    s.node("Mul", ["ones", "again"], "y")
    half = to_half(shaped(s.model()))
    types = types_of(half.model)
    assert types["ones"] == HALF
    assert types["whole"] == FLOAT, "integers beyond 2048 have no half"
    assert "rounded" in types
    assert next(n for n in half.model.graph.node if n.name == "rounded").input[0] == "x"
    assert_well_made(half, shaped(s.model()))


def test_operators_of_float32_only() -> None:
    s = Sketch(inputs={"x": [4]})
    s.node("Celu", ["x"], "a")
    s.node("ConstantOfShape", [s.store("four", [4], np.int64)], "zeros")
    s.node("Add", ["a", "zeros"], "y")
    half = to_half(shaped(s.model()))
    assert {(i.node, i.why) for i in half.float32_nodes} == {("a", "operator"), ("zeros", "operator")}
    assert_well_made(half, shaped(s.model()))


def test_output_that_is_read_inside() -> None:
    s = Sketch()
    s.node("Sigmoid", ["x"], "y")
    s.node("Tanh", ["y"], "deep")
    s.pair("y", "q")
    model = s.model()
    model.graph.output.append(helper.make_tensor_value_info("deep", FLOAT, None))
    model.graph.output.append(helper.make_tensor_value_info("q.dequantized", FLOAT, None))
    half = to_half(shaped(model))
    onnx.checker.check_model(half.model, full_check=True)
    nodes = {n.name: n for n in half.model.graph.node}
    assert list(nodes["y"].output) == ["y.half"]
    assert list(nodes["deep"].input) == ["y.half"]
    assert nodes["q/Q"].input[0] == "y"
    assert "q.dequantized/to_half" not in nodes


def test_names_that_are_taken() -> None:
    s = Sketch()
    s.node("Sigmoid", ["x"], "x.half")
    s.node("Tanh", ["x.half"], "y")
    half = to_half(shaped(s.model()))
    onnx.checker.check_model(half.model, full_check=True)
    assert list(half.model.graph.node[0].output) == ["x.half_"]


# what is refused


def refused() -> dict[str, onnx.ModelProto]:
    inner = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["z"])],
        "then",
        [],
        [helper.make_tensor_value_info("z", FLOAT, None)],
    )
    branch = Sketch()
    branch.store("yes", True, np.bool_)
    branch.node("If", ["yes"], "y", "choice", then_branch=inner, else_branch=inner)
    foreign = Sketch(domains=["somewhere.else"])
    foreign.node("Magic", ["x"], "m", domain="somewhere.else")
    foreign.node("Sigmoid", ["m"], "y")
    plain = Sketch()
    plain.node("Add", ["x", plain.store("w", np.ones((4, 8, 8)))], "y")
    functions, sparse = shaped(plain.model()), shaped(plain.model())
    functions.functions.add(name="f", domain="d")
    sparse.graph.sparse_initializer.add()
    outside = shaped(plain.model())
    outside.graph.initializer[0].data_location = TensorProto.EXTERNAL
    return {
        "holds a subgraph": branch.model(),
        "type of 'm' cannot be inferred": foreign.model(),
        "functions of its own": functions,
        "weights are sparse": sparse,
        "data of 'w' is not loaded": outside,
        "already holds": to_half(shaped(plain.model())).model,
    }


@pytest.mark.parametrize("message", refused())
def test_what_cannot_be_converted_is_refused(message: str) -> None:
    with pytest.raises(ExportError, match=message):
        to_half(refused()[message])


def test_weights_beside_the_graph(float_model: onnx.ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "half.onnx"
    half = to_half(float_model).model
    assert len(write_graph(half, path, external_data_mb=0)) == 2
    feeds = feeds_for(float_model)
    with open_engine("ort-cpu", path, threads=1) as engine:
        from_file = engine.run(feeds)[engine.outputs[0].name]
    np.testing.assert_array_equal(
        from_file, run(to_half(read_graph(tmp_path / "half.onnx") and float_model).model, feeds)
    )


# any graph

UNARY = ("Sigmoid", "Tanh", "Identity", "Neg", "Relu", "Softmax", "Erf")
BINARY = ("Add", "Sub", "Max")


@st.composite
def graphs(draw: st.DrawFn) -> onnx.ModelProto:
    """Return a random graph of pointwise operators, convolutions, Q/DQ pairs, concatenations and outputs."""
    s = Sketch(inputs={"x": [1, 4, 4, 4]})
    tensors = ["x"]
    for number in range(draw(st.integers(1, 8))):
        name = f"t{number}"
        one, other = (draw(st.sampled_from(tensors)) for _ in range(2))
        match draw(st.sampled_from(["unary", "binary", "gate", "conv", "pair", "constant", "concat"])):
            case "unary":
                s.node(draw(st.sampled_from(UNARY)), [one], name)
            case "binary":
                s.node(draw(st.sampled_from(BINARY)), [one, other], name)
            case "gate":
                s.node("Mul", [one, s.node("Sigmoid", [other], f"{name}.gate")], name)
            case "conv":
                s.conv(one, name, weight=s.weight(f"{name}.w", CODES, np.full(4, 2e-4, np.float32)))
            case "pair":
                name = s.pair(one, name, scale=0.02)
            case "constant":
                factor = draw(st.sampled_from([0.5, 1e6, -2.0]))
                s.node("Mul", [one, s.store(f"{name}.k", factor)], f"{name}.scaled")
                s.node("Mul", [f"{name}.scaled", s.store(f"{name}.r", 1 / factor)], name)
            case _:
                s.node("Concat", [one, other], f"{name}.cat", axis=1)
                ends = [s.store(f"{name}.{i}", [value], np.int64) for i, value in enumerate((0, 4, 1))]
                s.node("Slice", [f"{name}.cat", *ends], name)
        tensors.append(name)
    model = s.model(tensors[-1])
    others = draw(st.lists(st.sampled_from(tensors[1:]), max_size=2, unique=True))
    model.graph.output.extend(
        helper.make_tensor_value_info(n, FLOAT, None) for n in others if n != tensors[-1]
    )
    return shaped(model)


@settings(max_examples=15, deadline=None)
@given(graphs())
def test_any_graph_stays_legal_and_close(model: onnx.ModelProto) -> None:
    feeds = feeds_for(model)
    with open_engine("ort-cpu", with_extremes(model).SerializeToString(), threads=1) as engine:
        ranges = measure_ranges(engine, feeds, batch=1)
    half = to_half(model, ranges=ranges)
    assert_well_made(half, model)
    got = run(half.model, feeds)
    assert np.isfinite(got).all()
    # a value on the comparison of two codes is off by a step, and every pair of the chain may add one
    own = max(value for name, value in ranges.items() if "scaled" not in name)
    assert np.abs(run(model, feeds) - got).max() <= 0.1 * own
