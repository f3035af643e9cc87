"""What can be wrong with a graph of others? One random change at a time, from a seed."""

from __future__ import annotations

import random
from collections.abc import Callable

from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper

Mutation = Callable[[ModelProto, random.Random], None]
NAMES = ("", "x", "y", "nowhere", "\x1b]0;title\x07", "n" * 300)
ODD_TYPES = (0, 1, 2, 3, 6, 7, 8, 9, 10, 14, 16, 17, 22, 26, 99, -1)
ODD_SIZES = (-1, 0, 1, 3, 2**31, 2**62)
OPERATORS = (
    "Identity", "Transpose", "Reshape", "Cast", "Concat", "MatMul", "Gemm", "Conv", "ConvTranspose", "Pad", "Mul",
    "Div", "Split", "MaxPool", "Resize", "Constant", "QuantizeLinear", "DequantizeLinear", "Add", "If", "Swirl",
)  # fmt: skip
VALUES = (0, -7, 1.5, "a", [], [1, 2], [0, 9], [0.5], ["a"], 2**40)


def mutated(model: ModelProto, rng: random.Random) -> ModelProto:
    """Return a copy with one to three random changes."""
    changed = ModelProto()
    changed.CopyFrom(model)
    for change in rng.choices(CHANGES, k=rng.choice((1, 1, 1, 2, 3))):
        change(changed, rng)
    return changed


def _node(model: ModelProto, rng: random.Random) -> NodeProto:
    nodes = model.graph.node
    return nodes[rng.randrange(len(nodes))] if nodes else nodes.add()


def _stored(model: ModelProto, rng: random.Random) -> TensorProto:
    tensors = model.graph.initializer
    return tensors[rng.randrange(len(tensors))] if tensors else tensors.add()


def _tensor_name(model: ModelProto, rng: random.Random) -> str:
    names = [name for node in model.graph.node for name in (*node.input, *node.output)]
    return rng.choice([*names, *NAMES])


def rename_input(model: ModelProto, rng: random.Random) -> None:
    """Cycles, self-loops and inputs from nowhere come from here."""
    node = _node(model, rng)
    if node.input:
        node.input[rng.randrange(len(node.input))] = _tensor_name(model, rng)


def rename_output(model: ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    if node.output:
        node.output[rng.randrange(len(node.output))] = _tensor_name(model, rng)


def read_own_output(model: ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    if node.input and node.output:
        node.input[0] = node.output[0]


def drop_inputs(model: ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    del node.input[rng.randrange(len(node.input) + 1) :]


def drop_outputs(model: ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    del node.output[rng.randrange(len(node.output) + 1) :]


def add_inputs(model: ModelProto, rng: random.Random) -> None:
    _node(model, rng).input.extend(_tensor_name(model, rng) for _ in range(rng.choice((1, 2, 9))))


def drop_node(model: ModelProto, rng: random.Random) -> None:
    if model.graph.node:
        del model.graph.node[rng.randrange(len(model.graph.node))]


def repeat_node(model: ModelProto, rng: random.Random) -> None:
    model.graph.node.add().CopyFrom(_node(model, rng))


def shuffle_nodes(model: ModelProto, rng: random.Random) -> None:
    nodes = [NodeProto.FromString(node.SerializeToString()) for node in model.graph.node]
    rng.shuffle(nodes)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def change_operator(model: ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    node.op_type = rng.choice(OPERATORS)
    node.domain = rng.choice(("", "", "ai.onnx", "com.microsoft", "org.example"))


def change_attribute(model: ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    names = [a.name for a in node.attribute] + ["axis", "perm", "block_size", "output_dtype", "to", "mode"]
    name, value = rng.choice(names), rng.choice(VALUES)
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)
    kind = AttributeProto.INTS if value == [] else None
    node.attribute.append(helper.make_attribute(name, value, attr_type=kind))


def untype_attribute(model: ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    attribute = rng.choice(node.attribute) if node.attribute else node.attribute.add(name="axis")
    attribute.type = rng.choice(AttributeProto.AttributeType.values())


def nest_graph(model: ModelProto, rng: random.Random) -> None:
    """A node whose graph reads from around it, or from nowhere."""
    node = model.graph.node.add(
        op_type="If", name="nested", input=[_tensor_name(model, rng)], output=["nested"]
    )
    for branch in ("then_branch", "else_branch"):
        attribute = node.attribute.add(name=branch, type=AttributeProto.GRAPH)
        attribute.g.node.add(
            op_type=rng.choice(OPERATORS), input=[_tensor_name(model, rng)], output=["inside"]
        )
        attribute.g.output.add(name=rng.choice(("inside", "nested", "nowhere")))


def change_shape(model: ModelProto, rng: random.Random) -> None:
    dims = _stored(model, rng).dims
    match rng.randrange(4):
        case 0:
            dims.append(rng.choice(ODD_SIZES))
        case 1 if dims:
            dims[rng.randrange(len(dims))] = rng.choice(ODD_SIZES)
        case 2:
            del dims[rng.randrange(len(dims) + 1) :]
        case _:
            dims.extend([1] * 70)


def change_type(model: ModelProto, rng: random.Random) -> None:
    _stored(model, rng).data_type = rng.choice(ODD_TYPES)


def retyped(model: ModelProto, rng: random.Random) -> None:
    """Another type with as much data as it takes."""
    tensor = _stored(model, rng)
    kind = rng.choice([number for number in TensorProto.DataType.values() if number])
    count = rng.choice((0, 1, 1, 4, 8))
    values = [b"a\xff" if kind == TensorProto.STRING else 1] * count
    tensor.CopyFrom(helper.make_tensor(tensor.name, kind, [count] if count != 1 else [], values))


def change_data(model: ModelProto, rng: random.Random) -> None:
    tensor = _stored(model, rng)
    match rng.randrange(4):
        case 0:
            tensor.raw_data = tensor.raw_data[: rng.randrange(len(tensor.raw_data) + 1)]
        case 1:
            tensor.raw_data += b"\xff\x00"
        case 2:
            tensor.float_data.extend([float("nan"), 1.0])
        case _:
            tensor.raw_data = rng.randbytes(len(tensor.raw_data))


def lie_elsewhere(model: ModelProto, rng: random.Random) -> None:
    tensor = _stored(model, rng)
    tensor.data_location = TensorProto.EXTERNAL
    places = ("w\0.bin", "../w.bin", "", "n" * 300, "graph.onnx", "*/_ORT_MEM_ADDR_/*")
    tensor.external_data.add(key="location", value=rng.choice(places))
    tensor.external_data.add(key="offset", value=rng.choice(("0", "-4", "1e3", "9" * 5000, "\u0663")))


def drop_stored(model: ModelProto, rng: random.Random) -> None:
    if model.graph.initializer:
        del model.graph.initializer[rng.randrange(len(model.graph.initializer))]


def repeat_stored(model: ModelProto, rng: random.Random) -> None:
    model.graph.initializer.add().CopyFrom(_stored(model, rng))


def change_declared(model: ModelProto, rng: random.Random) -> None:
    infos = (*model.graph.input, *model.graph.output, *model.graph.value_info)
    info = rng.choice(infos)
    match rng.randrange(4):
        case 0:
            info.type.tensor_type.elem_type = rng.choice(ODD_TYPES)
        case 1:
            info.ClearField("type")
        case 2:
            info.name = _tensor_name(model, rng)
        case _:
            info.type.sequence_type.elem_type.tensor_type.elem_type = 1


def change_versions(model: ModelProto, rng: random.Random) -> None:
    model.ir_version = rng.choice((0, 3, 10, 99, -1, model.ir_version))
    for opset in model.opset_import:
        opset.version = rng.choice((-1, 0, 1, 12, 20, 21, 28, 2**40))
        opset.domain = rng.choice(("", "", "com.microsoft"))


def call_itself(model: ModelProto, rng: random.Random) -> None:
    function = model.functions.add(name="f", domain="org.example", input=["a"], output=["b"])
    function.node.add(op_type=rng.choice(("f", "Relu")), domain="org.example", input=["a"], output=["b"])
    _node(model, rng).op_type = "f"


CHANGES: tuple[Mutation, ...] = (
    rename_input, rename_output, read_own_output, drop_inputs, drop_outputs, add_inputs, drop_node, repeat_node,
    shuffle_nodes, change_operator, change_attribute, untype_attribute, nest_graph, change_shape, change_type,
    retyped, change_data, lie_elsewhere, drop_stored, repeat_stored, change_declared, change_versions, call_itself,
)  # fmt: skip
