"""What no parser need take for a graph is refused before anything walks through it, with the node named."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from gacq_deploy.errors import ArtifactError, ResourceError
from gacq_deploy.graph import wellformed
from gacq_deploy.graph.wellformed import require_wellformed
from tests.support.graphs.graph_sketch import Sketch


def graph(*nodes: NodeProto) -> ModelProto:
    """A quantized convolution of ``x`` to ``y``, and more nodes behind it."""
    s = Sketch()
    s.conv(s.pair("x", "a"))
    s.nodes += nodes
    return s.model()


def _node(
    op: str, inputs: list[str], outputs: list[str], name: str = "n", **attributes: object
) -> ModelProto:
    return graph(helper.make_node(op, inputs, outputs, name, **attributes))


def _changed(change: Callable[[ModelProto], object]) -> ModelProto:
    model = graph()
    change(model)
    return model


def _with_stored(tensor: TensorProto) -> ModelProto:
    return _changed(lambda m: m.graph.initializer.append(tensor))


def _with_attribute(name: str, kind: int) -> ModelProto:
    model = _node("Softmax", ["y"], ["z"])
    model.graph.node[-1].attribute.append(AttributeProto(name=name, type=kind))
    return model


def _nested(name: str, op: str = "Identity") -> NodeProto:
    inner = helper.make_graph(
        [helper.make_node(op, [name], ["inside"], "deep")],
        "branch",
        [],
        [helper.make_tensor_value_info("inside", TensorProto.FLOAT, None)],
    )
    return helper.make_node("If", ["yes"], ["z"], "if", then_branch=inner, else_branch=inner)


def _if(name: str, op: str = "Identity") -> ModelProto:
    model = graph(_nested(name, op))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    return model


def _recursive() -> ModelProto:
    model = graph(helper.make_node("f", ["y"], ["z"], "n", domain="org.example"))
    imports = [helper.make_opsetid("org.example", 1)]
    model.opset_import.extend(imports)
    call = helper.make_node("f", ["a"], ["b"], domain="org.example")
    model.functions.append(helper.make_function("org.example", "f", ["a"], ["b"], [call], imports))
    return model


def _two_nodes(*pairs: tuple[str, str]) -> ModelProto:
    return graph(*(helper.make_node("Identity", [a], [b], f"from {a}") for a, b in pairs))


SHORT = TensorProto(name="w8", data_type=TensorProto.INT8, dims=[8, 8], raw_data=bytes(10))
REFUSED: dict[str, tuple[Callable[[], ModelProto], str]] = {
    "cycle": (lambda: _two_nodes(("b", "a"), ("a", "b")), "'from (b|a)' .* cycle with 'from (a|b)'"),
    "self-loop": (lambda: _two_nodes(("a", "a")), "Node 'from a' .* reads its own output"),
    "cycle through a graph inside": (lambda: _if("z"), "Node 'if' .* reads its own output"),
    "two makers": (lambda: _two_nodes(("x", "a"), ("y", "a")), "Node 'from y' .* makes tensor 'a'"),
    "output named as an input": (lambda: _two_nodes(("y", "x")), "Node 'from y' .* makes tensor 'x'"),
    "output named as a weight": (lambda: _two_nodes(("y", "a.scale")), "Node 'from y' .* makes tensor 'a.scale'"),
    "from nowhere": (lambda: _two_nodes(("nowhere", "a")), "Node 'from nowhere' .* reads 'nowhere'"),
    "from nowhere inside": (lambda: _if("nowhere"), "Node 'deep' .* reads 'nowhere'"),
    "scale from nowhere": (lambda: _changed(lambda m: m.graph.initializer.pop(0)), "Node 'a/Q' .* reads 'a.scale'"),
    "output from nowhere": (lambda: Sketch().model(), "Output 'y'"),
    "too few inputs": (lambda: _node("MatMul", ["y"], ["z"]), "Node 'n' .* 1 input, .* at least 2"),
    "too many inputs": (lambda: _node("Relu", ["y", "y"], ["z"]), "Node 'n' .* 2 inputs, .* at most 1"),
    "left out input": (lambda: _node("MatMul", ["y", ""], ["z"]), "Node 'n' .* lacks input 1"),
    "left out repeated input": (lambda: _node("Concat", ["y", ""], ["z"], axis=1), "Node 'n' .* lacks input 1"),
    "no output": (lambda: _node("Relu", ["y"], []), "Node 'n' .* 0 outputs"),
    "nameless output": (lambda: _node("Relu", ["y"], [""]), "Node 'n' .* names no output"),
    "nameless node": (lambda: _node("MatMul", ["y"], ["z"], ""), "Node 'MatMul -> z'"),
    "no operator": (lambda: _node("", ["y"], ["z"]), "Node 'n' .* no operator"),
    "no operator set": (lambda: _node("F", ["y"], ["z"], domain="org.example"), "Node 'n' .* 'org.example'"),
    "foreign quantizer without scale": (
        lambda: _changed(lambda m: (m.graph.node[0].input.pop(), m.graph.node[0].input.pop())), "Node 'a/Q' .* 1 input"
    ),
    "axis is a text": (lambda: _node("Softmax", ["y"], ["z"], axis="a"), "Node 'n' .* 'axis' of kind STRING"),
    "axis is a fraction": (lambda: _node("Softmax", ["y"], ["z"], axis=1.5), "Node 'n' .* 'axis' of kind FLOAT"),
    "axis is a list": (lambda: _node("Softmax", ["y"], ["z"], axis=[1, 2]), "Node 'n' .* 'axis' of kind INTS"),
    "attribute without a type": (lambda: _with_attribute("axis", 0), "Node 'n' .* 'axis' of kind UNDEFINED"),
    "unknown attribute": (lambda: _with_attribute("wheel", AttributeProto.INT), "Node 'n' .* 'wheel'"),
    "lacking attribute": (lambda: _node("Concat", ["y"], ["z"]), "Node 'n' .* lacks its attribute 'axis'"),
    "cast to nothing": (lambda: _node("Cast", ["y"], ["z"], to=99), "Node 'n' .* unknown element type 99"),
    "short data": (lambda: _with_stored(SHORT), "'w8' holds 10 bytes; int8 of shape .8, 8. takes 64"),
    "short data of a scale": (
        lambda: _changed(lambda m: setattr(m.graph.initializer[0], "raw_data", b"")),
        "'a.scale', which node 'a/Q' .QuantizeLinear. reads, holds 0 bytes",
    ),
    "short data in a node": (lambda: _node("Constant", [], ["z"], value=SHORT), "Node 'n' .* holds 10 bytes"),
    "no data": (lambda: _with_stored(TensorProto(name="w", data_type=1, dims=[2])), "'w' holds 0 values"),
    "two kinds of data": (
        lambda: _with_stored(TensorProto(name="w", data_type=1, dims=[1], raw_data=bytes(4), float_data=[1])),
        "'w' keeps its float values in float_data and raw_data",
    ),
    "unknown type": (lambda: _with_stored(TensorProto(name="w", data_type=99)), "'w' is of the unknown .* 99"),
    "no type": (lambda: _with_stored(TensorProto(name="w")), "'w' is of the unknown element type 0"),
    "negative size": (lambda: _with_stored(TensorProto(name="w", data_type=1, dims=[-1])), r"'w' has the shape \[-1"),
    "too many axes": (lambda: _with_stored(TensorProto(name="w", data_type=1, dims=[1] * 70)), "'w' has 70 axes"),
    "endless shape": (lambda: _with_stored(TensorProto(name="w", data_type=1, dims=[0, 2**62])), "'w' has the shape"),
    "stored twice": (lambda: _with_stored(TensorProto(name="a.scale", data_type=1)), "called 'a.scale'"),
    "stored without a name": (lambda: _with_stored(TensorProto(data_type=1)), "stored tensors has no name"),
    "text as a scale": (
        lambda: _changed(lambda m: m.graph.initializer[0].CopyFrom(helper.make_tensor("a.scale", 8, [], [b"\xff"]))),
        "Node 'a/Q' .* 'a.scale' of type string",
    ),
    "input twice": (lambda: _changed(lambda m: m.graph.input.append(m.graph.input[0])), "Two inputs are called 'x'"),
    "input without a type": (lambda: _changed(lambda m: m.graph.input[0].ClearField("type")), "'x' has no type"),
    "input of no type": (
        lambda: _changed(lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 99)), "'x' .* type 99"
    ),
    "two nodes of one name": (lambda: _node("Relu", ["y"], ["z"], "a/Q"), "Node 'a/Q' .* name of another"),
    "function that calls itself": (_recursive, "'f' calls itself"),
    "later format": (lambda: _changed(lambda m: setattr(m, "ir_version", 99)), "version 99"),
    "no format": (lambda: _changed(lambda m: m.ClearField("ir_version")), "version 0"),
    "operator set 0": (lambda: _changed(lambda m: setattr(m.opset_import[0], "version", 0)), "version 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED.values(), ids=list(REFUSED))
def test_a_malformed_graph_is_refused_by_name(case: tuple[Callable[[], ModelProto], str]) -> None:
    build, match = case
    with pytest.raises(ArtifactError, match=f"(?s)^ONNX file some.onnx: .*({match})") as refused:
        require_wellformed(build(), "ONNX file some.onnx")
    assert refused.value.hint


@pytest.mark.parametrize("name", ["n\x1b[2J", "n\n\u202e"])
def test_names_are_told_without_control_characters(name: str) -> None:
    with pytest.raises(ArtifactError, match=r"Node 'n\\u00") as refused:
        require_wellformed(_node("MatMul", ["y"], ["z"], name), "x")
    assert refused.value.message.isprintable()


def test_a_name_that_is_no_text_is_refused() -> None:
    data = _node("Relu", ["y"], ["zz"], "QQQQ").SerializeToString()
    for text in (b"QQQQ", b"zz"):
        model = onnx.load_model_from_string(data.replace(text, b"\xff" * len(text)))
        with pytest.raises(ArtifactError, match="no UTF-8"):
            require_wellformed(model, "x")


def test_nodes_in_any_order_are_taken_as_engines_take_them() -> None:
    model = graph(helper.make_node("Relu", ["y"], ["z"], "n"))
    nodes = list(reversed(model.graph.node))
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    index = require_wellformed(model, "x")
    assert [node.name for node in index.nodes] == [node.name for node in copies]
    made = set(index.inputs) | set(index.initializers)
    for node in index.in_order():
        assert made.issuperset(node.input)
        made.update(node.output)


def test_what_is_well_formed_is_left_alone() -> None:
    kinds = [number for number in TensorProto.DataType.values() if number]
    model = _if("y")
    for kind in kinds:
        for count in (0, 1, 3, 8):
            values = [b"a" if kind == TensorProto.STRING else 1] * count
            model.graph.initializer.append(helper.make_tensor(f"{kind}.{count}", kind, [count], values))
            if kind != TensorProto.STRING:
                array = numpy_helper.to_array(model.graph.initializer[-1])
                model.graph.initializer.append(numpy_helper.from_array(array, f"{kind}.{count}.raw"))
    assert require_wellformed(model, "x").model is model


def test_there_is_a_bound_on_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _if("y")
    monkeypatch.setattr(wellformed, "MOST_NODES", len(model.graph.node) + 2)
    require_wellformed(model, "x")
    monkeypatch.setattr(wellformed, "MOST_NODES", len(model.graph.node) + 1)
    with pytest.raises(ResourceError, match="more than 6 nodes"):
        require_wellformed(model, "x")
