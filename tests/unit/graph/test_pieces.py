from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto

from gacq_deploy.artifact.artifact import CalibrationArtifact
from gacq_deploy.export.cpu_flavour import to_cpu_flavour
from gacq_deploy.export.qdq import insert_qdq
from gacq_deploy.graph.index import DEQUANTIZE, QUANTIZE, GraphIndex
from gacq_deploy.graph.pieces import Piece, cut_into_pieces, held_bytes
from tests.support.graphs.graph_sketch import Sketch

WEIGHT = np.ones((4, 4), np.float32)
INTEGERS = (TensorProto.INT8, TensorProto.UINT8)


def _weights(piece: Piece) -> int:
    return sum(map(held_bytes, piece.model.graph.initializer))


def _names(nodes: Sequence[NodeProto]) -> list[str]:
    return [node.name for node in nodes]


def _chain(layers: int) -> Sketch:
    s = Sketch(inputs={"x": [1, 4]})
    last = "x"
    for i in range(layers):
        s.store(f"w{i}", WEIGHT)
        last = s.node("MatMul", [last, f"w{i}"], f"y{i}")
    return s


def test_pieces_hold_the_nodes_in_order_and_what_they_read() -> None:
    pieces = cut_into_pieces(_chain(6).model("y5"), weight_bytes=2 * WEIGHT.nbytes)
    assert [_names(p.model.graph.node) for p in pieces] == [["y0", "y1"], ["y2", "y3"], ["y4", "y5"]]
    assert [dict(p.inputs) for p in pieces] == [{"x": "x"}, {"y1": "y1"}, {"y3": "y3"}]
    assert [p.outputs for p in pieces] == [("y1",), ("y3",), ("y5",)]
    assert [p.dropped for p in pieces] == [("x",), ("y1",), ("y3",)]
    for piece in pieces:
        onnx.checker.check_model(piece.model)


def test_a_weight_beyond_the_bound_is_a_piece_of_its_own() -> None:
    pieces = cut_into_pieces(_chain(3).model("y2"), weight_bytes=1)
    assert [_names(p.model.graph.node) for p in pieces] == [["y0"], ["y1"], ["y2"]]


def test_a_cut_lies_where_few_tensors_cross() -> None:
    s = _chain(2)
    for i in (0, 1):
        s.node("Relu", ["y1"], f"branch{i}")
    s.node("Add", ["branch0", "branch1"], "joined")
    s.store("w", WEIGHT)
    s.node("MatMul", ["joined", "w"], "y")
    first, second = cut_into_pieces(s.model(), weight_bytes=2 * WEIGHT.nbytes)
    assert (first.outputs, dict(second.inputs)) == (("joined",), {"joined": "joined"})


def test_what_is_read_later_stays_and_what_is_watched_is_an_output() -> None:
    s = _chain(3)
    s.node("Add", ["y2", "y0"], "y")
    pieces = cut_into_pieces(s.model(), weight_bytes=1, watched=["y1", "y2"])
    assert [p.outputs for p in pieces] == [("y0",), ("y1",), ("y2",), ("y",)]
    assert [p.dropped for p in pieces] == [("x",), (), ("y1",), ("y0", "y2")]


def test_a_piece_ends_behind_what_is_watched() -> None:
    pieces = cut_into_pieces(_chain(4).model("y3"), weight_bytes=10**9, watched=["y0", "y2"])
    assert [_names(p.model.graph.node) for p in pieces] == [["y0"], ["y1", "y2"], ["y3"]]


def test_what_is_computed_from_weights_alone_goes_where_it_is_read() -> None:
    s = Sketch(inputs={"x": [1, 4]})
    s.store("w", WEIGHT)
    s.node("Transpose", ["w"], "turned", perm=[1, 0])
    for i, (source, result) in enumerate((("x", "a"), ("a", "b"), ("b", "y"))):
        s.node("MatMul", [source, "turned"], result)
        s.store(f"w{i}", WEIGHT) if i < 2 else None
        s.node("Add", [result, f"w{i}"], f"{result}.moved") if i < 2 else None
    pieces = cut_into_pieces(s.model(), weight_bytes=1)
    assert len(pieces) > 1
    for piece in pieces:
        reads = any("turned" in node.input for node in piece.model.graph.node)
        assert ("turned" in _names(piece.model.graph.node)) == reads
        onnx.checker.check_model(piece.model)


def test_half_stored_weights_count_as_what_is_computed_with() -> None:
    s = Sketch(inputs={"x": [1, 4]})
    last = "x"
    for i in range(4):
        s.store(f"w{i}", WEIGHT, np.float16)
        s.node("Cast", [f"w{i}"], f"w{i}.float", to=TensorProto.FLOAT)
        last = s.node("MatMul", [last, f"w{i}.float"], f"y{i}")
    pieces = cut_into_pieces(s.model("y3"), weight_bytes=2 * WEIGHT.nbytes)
    assert [_names(p.model.graph.node) for p in pieces] == [
        ["w0.float", "w1.float", "y0", "y1"],
        ["w2.float", "w3.float", "y2", "y3"],
    ]
    assert [_weights(p) for p in pieces] == [2 * WEIGHT.nbytes] * 2


def test_a_dequantized_tensor_passes_its_pair_again_behind_a_cut() -> None:
    s = Sketch(inputs={"x": [1, 4]})
    data = s.pair("x", "a")
    s.store("w", WEIGHT)
    s.node("MatMul", [data, "w"], "one")
    s.store("v", WEIGHT)
    s.node("MatMul", [data, "v"], "two")
    s.node("Add", ["one", "two"], "y")
    first, second = cut_into_pieces(s.model(), weight_bytes=100)
    assert first.outputs == (data, "one")
    assert dict(second.inputs)[f"{data}/given"] == data
    assert [n.op_type for n in second.model.graph.node] == [QUANTIZE, DEQUANTIZE, "MatMul", "Add"]


@pytest.mark.parametrize("flavour", ["int8.onnx", "int8.cpu.onnx"])
def test_pairs_stay_together_and_with_their_layer(
    float_model: onnx.ModelProto, artifact: CalibrationArtifact, flavour: str
) -> None:
    if flavour == "int8.onnx":
        model = insert_qdq(float_model, artifact, placement="input")
    else:
        model = to_cpu_flavour(insert_qdq(float_model, artifact, placement="output"))
    whole = GraphIndex(model)
    pieces = cut_into_pieces(model, weight_bytes=4000)
    assert len(pieces) > 10
    for piece in pieces:
        onnx.checker.check_model(piece.model, full_check=True)
        own = GraphIndex(piece.model)
        # codes cross nowhere, so each quantizer has its dequantizer and each dequantizer its codes
        crossing = [*piece.model.graph.input, *piece.model.graph.output]
        assert not any(i.type.tensor_type.elem_type in INTEGERS for i in crossing)
        for node in own.of_type("Conv", "Gemm", "MatMul"):
            original = next(n for n in whole.nodes if n.output[0] == node.output[0])
            for name in original.input:
                maker = whole.producer(name)
                if maker is not None and maker.op_type == DEQUANTIZE:
                    assert own.producer(name) is not None
            behind = [use.node.op_type for use in whole.readers(node.output[0])]
            assert (QUANTIZE in behind) == (QUANTIZE in [u.node.op_type for u in own.readers(node.output[0])])


def _attention(*, heads: int = 2, masked: str = "", guarded: bool = False) -> Sketch:
    """Scores of ``heads`` heads over three tokens; ``masked`` by an input, or by a stored tensor for each head."""
    shape = [1, heads, 3, 4]
    s = Sketch(inputs={"q": shape, "k": [1, heads, 4, 3], "v": shape})
    last = s.node("MatMul", ["q", "k"], "scores")
    if masked == "input":
        s.inputs["mask"] = [1, 1, 3, 3]
        last = s.node("Add", [last, "mask"], "masked")
    elif masked == "stored":
        s.store("mask", np.zeros((1, heads, 3, 3)))
        last = s.node("Add", [last, "mask"], "masked")
    last = s.node("Softmax", [last], "shares", axis=-1)
    if guarded:
        s.store("zero", 0)
        s.node("IsNaN", [last], "absent")
        last = s.node("Where", ["absent", "zero", last], "guarded")
    s.node("MatMul", [last, "v"], "mixed")
    s.node("Relu", ["mixed"], "y")
    return s


@pytest.mark.parametrize(("masked", "guarded"), [("", False), ("input", False), ("", True), ("input", True)])
def test_an_attention_is_a_piece_of_its_own(masked: str, guarded: bool) -> None:
    first, second = cut_into_pieces(_attention(masked=masked, guarded=guarded).model(), weight_bytes=10**9)
    assert first.attention is not None
    assert (first.attention.queries, first.attention.keys, first.outputs) == ("q", "k", ("mixed",))
    assert set(first.inputs) == {"q", "k", "v", *(["mask"] if masked else [])}
    assert second.attention is None


def test_heads_that_differ_in_what_is_stored_are_not_taken_apart() -> None:
    assert [
        p.attention for p in cut_into_pieces(_attention(masked="stored").model(), weight_bytes=10**9)
    ] == [None]


def test_scores_that_are_read_elsewhere_are_not_taken_apart() -> None:
    s = _attention()
    s.node("Relu", ["shares"], "seen")
    s.node("ReduceSum", ["seen"], "sum")
    assert [p.attention for p in cut_into_pieces(s.model("sum"), weight_bytes=10**9)] == [None]
