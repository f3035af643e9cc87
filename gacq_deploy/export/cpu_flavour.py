"""What do ONNX Runtime's integer kernels want? The same grid as uint8 around 128, and integer bias.

Its x86 kernels multiply uint8 activations by int8 weights, need a quantized output and add an int32 bias in
the accumulator. Codes ``q`` in [-128, 127] and ``q + 128`` in [0, 255] with zero point 128 are the same
numbers, bit for bit; only the bias is rounded, to multiples of (activation scale x weight scale).
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from gacq_deploy.errors import ExportError
from gacq_deploy.export.qdq import check_legal
from gacq_deploy.graph.index import (
    DEQUANTIZE,
    QUANTIZE,
    GraphIndex,
    Use,
    drop_unused_initializers,
    module_of,
    replace_nodes,
    set_module,
)
from gacq_deploy.spec import Array

ZERO_POINT = 128
_UNBIASED = ".unbiased"
_INT32_MAX = 2**31 - 1
_LARGEST_CODE = 128
"""Largest |q| of an int8 activation: what a weight can be multiplied by in the int32 accumulator."""
_HINT = "Pass the signed graph that insert_qdq(placement='output') returned."


def to_cpu_flavour(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the uint8 flavour of a signed graph whose convolution outputs are quantized.

    Activations become uint8 with zero point 128, scales unchanged; weights stay int8. The bias of every
    convolution with a quantized output becomes int32 codes with scale ``activation scale x weight scale`` and
    a ``DequantizeLinear``. Linear layers keep a float bias and a float output.

    Where a bias is too large for that grid (a channel whose weights are next to nothing), it is added in
    float behind the convolution, which then runs in a float kernel. Left inside, ONNX Runtime would convert
    it itself and overflow without a word.

    Raises:
        ExportError: the graph is not signed, nothing is quantized, or no quantized convolution has a quantized output.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    index = GraphIndex(result)
    convolutions = [n for n in index.of_type("Conv") if _has_quantized_output(index, n)]
    kinds = {n.op_type for n in index.of_type("Conv", "Gemm", "MatMul") if _has_codes(index, n)}
    if not convolutions and (not kinds or "Conv" in kinds):  # a transformer may have linear layers alone
        raise ExportError(
            "No convolution of the graph has a quantized output: nothing could run in integers.", _HINT
        )
    _integer_bias(result, index, convolutions)
    _shift_activations(result, TensorProto.INT8, np.uint8, ZERO_POINT)
    check_legal(result)
    return result


def signed_form(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the int8 graph that computes what a CPU flavour computes, bit for bit.

    Raises:
        ExportError: the graph is not a CPU flavour.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    _shift_activations(result, TensorProto.UINT8, np.int8, 0)
    check_legal(result)
    return result


def join_split_bias(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with every bias that stands behind its convolution back inside: same wiring as in float."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    index = GraphIndex(result)
    additions: list[NodeProto] = []
    for node in index.of_type("Conv"):
        readers = index.readers(node.output[0])
        if len(node.input) != 2 or len(readers) != 1 or not _adds_bias(index, node, readers[0]):
            continue
        addition, position = readers[0]
        bias = index.constant(addition.input[1 - position])
        assert bias is not None, f"'{addition.name}' adds no constant"
        name = f"{addition.output[0]}.bias"
        result.graph.initializer.append(numpy_helper.from_array(bias.reshape(-1), name))
        node.input.append(name)
        node.output[0] = addition.output[0]
        additions.append(addition)
    # nodes of protobuf compare by value, and two calls of a module may be equal
    dropped = {id(node) for node in additions}
    replace_nodes(result, [n for n in index.nodes if id(n) not in dropped])
    drop_unused_initializers(result)
    return result


def _has_codes(index: GraphIndex, node: NodeProto) -> bool:
    source = index.producer(node.input[1])
    return source is not None and source.op_type == DEQUANTIZE


def _adds_bias(index: GraphIndex, convolution: NodeProto, use: Use) -> bool:
    """Return whether a reader adds one constant a channel, in the name of the convolution's own module."""
    if use.node.op_type != "Add" or module_of(use.node) != module_of(convolution):
        return False
    bias = index.constant(use.node.input[1 - use.position])
    return bias is not None and bias.ndim >= 2 and bias.size == bias.shape[0]


def _shift_activations(model: onnx.ModelProto, before: int, dtype: type[np.generic], value: int) -> None:
    """Give every activation pair another integer type and zero point."""
    index = GraphIndex(model)
    names: set[str] = set()
    for node in index.of_type(QUANTIZE):
        stored = index.initializers.get(node.input[2]) if len(node.input) > 2 else None
        if stored is None or stored.data_type != before:
            wanted = TensorProto.DataType.Name(before).lower()
            raise ExportError(f"Activation quantizer '{node.name}' is not {wanted}.", _HINT)
        names.add(node.input[2])
    for name in names:
        shape = tuple(index.initializers[name].dims)
        index.initializers[name].CopyFrom(numpy_helper.from_array(np.full(shape, value, dtype), name))


def _integer_bias(model: onnx.ModelProto, index: GraphIndex, convolutions: list[NodeProto]) -> None:
    written: set[str] = set()
    before: dict[str, NodeProto] = {}
    after: dict[str, NodeProto] = {}
    for node in convolutions:
        bias = index.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        if bias is None:
            continue
        module = module_of(node) or node.name
        name = f"{module}:bias"
        codes = _bias_codes(index, node, bias)
        if codes is None:
            _split_bias(model, node, name, bias, new=name not in written)
            after[node.output[0]] = _add(name, node.output[0], module)
        else:
            if name not in written:  # a module called twice has one bias
                _store_codes(model, name, codes, _bias_scale(index, node))
                before[node.output[0]] = _dequantize(name, module)
            node.input[2] = f"{name}.dequantized"
        written.add(name)
    ordered: list[NodeProto] = []
    for node in index.nodes:
        here = node.output[0]
        ordered += [n for n in (before.get(here), node, after.get(here)) if n is not None]
    replace_nodes(model, ordered)
    drop_unused_initializers(model)


def _split_bias(model: onnx.ModelProto, node: NodeProto, name: str, bias: Array, *, new: bool) -> None:
    """Take the bias out of a convolution; an addition behind it brings it back."""
    del node.input[2]
    node.output[0] = f"{node.output[0]}{_UNBIASED}"
    if new:
        weight = next(
            t for t in model.graph.initializer if t.name == f"{name.removesuffix(':bias')}:weight.codes"
        )
        shaped = bias.reshape(-1, *([1] * (len(weight.dims) - 2)))
        model.graph.initializer.append(numpy_helper.from_array(shaped, f"{name}.float"))


def _add(name: str, unbiased: str, module: str) -> NodeProto:
    result = unbiased.removesuffix(_UNBIASED)
    return set_module(
        helper.make_node("Add", [unbiased, f"{name}.float"], [result], name=f"{name}/Add"), module
    )


def _store_codes(model: onnx.ModelProto, name: str, codes: Array, scale: Array) -> None:
    parts = {"codes": codes, "scale": scale, "zero_point": np.zeros(scale.shape, np.int32)}
    model.graph.initializer.extend(
        numpy_helper.from_array(value, f"{name}.{key}") for key, value in parts.items()
    )


def _dequantize(name: str, module: str) -> NodeProto:
    inputs = [f"{name}.codes", f"{name}.scale", f"{name}.zero_point"]
    node = helper.make_node(DEQUANTIZE, inputs, [f"{name}.dequantized"], name=f"{name}/{DEQUANTIZE}", axis=0)
    return set_module(node, module)


def _has_quantized_output(index: GraphIndex, node: NodeProto) -> bool:
    readers = index.readers(node.output[0])
    return (
        len(readers) == 1
        and readers[0].node.op_type == QUANTIZE
        and _dequantizer(index, node.input[1]) is not None
    )


def _dequantizer(index: GraphIndex, tensor: str) -> NodeProto | None:
    node = index.producer(tensor)
    return node if node is not None and node.op_type == DEQUANTIZE else None


def _bias_scale(index: GraphIndex, node: NodeProto) -> Array:
    """Return the accumulator's scale per output channel, float32."""
    data, weight = _dequantizer(index, node.input[0]), _dequantizer(index, node.input[1])
    scales = [index.constant(d.input[1]) for d in (data, weight) if d is not None]
    if len(scales) != 2 or scales[0] is None or scales[1] is None:
        raise ExportError(f"Convolution '{node.name}' has no stored activation and weight scale.", _HINT)
    return np.asarray(scales[0] * scales[1], np.float32).reshape(-1)


def _bias_codes(index: GraphIndex, node: NodeProto, bias: Array) -> Array | None:
    """Return the bias in units of the accumulator's scale, int32; None if some input could overflow it."""
    scale = _bias_scale(index, node)
    weight = _dequantizer(index, node.input[1])
    stored = index.constant(weight.input[0]) if weight is not None else None
    if stored is None or not bool(np.all(scale >= np.finfo(np.float32).tiny)):
        return None
    codes = np.rint(bias.astype(np.float64) / scale.astype(np.float64))
    magnitudes = np.abs(stored, dtype=np.int16).reshape(stored.shape[0], -1)  # |-128| is no int8
    reach = magnitudes.sum(axis=1, dtype=np.int64) * _LARGEST_CODE
    return codes.astype(np.int32) if bool(np.all(np.abs(codes) + reach <= _INT32_MAX)) else None
