"""Which numbers and types can an engine not take, or would it silently read as others?"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from onnx import NodeProto, TensorProto

from gacq_deploy.graph.index import DEQUANTIZE, QUANTIZE, Use, attribute, opset_of, weight_axis
from gacq_deploy.graph.nodes import malformed, name_of, operand, result
from gacq_deploy.graph.stored import type_text
from gacq_deploy.graph.weights import has_values, to_array
from gacq_deploy.lint.view import LAYERS, Hit, Linear, QuantView
from gacq_deploy.spec import Array

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_CODES = (TensorProto.INT8, TensorProto.UINT8, TensorProto.INT32)
"""int32: biases."""
_FOUR_BITS = (TensorProto.INT4, TensorProto.UINT4)
_LOW_BIT = (
    *_FOUR_BITS, TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E5M2, TensorProto.FLOAT4E2M1,
)  # fmt: skip
_BLOCK_OPSET = 21
"""The first with 4-bit codes, and with blocks of scales."""
_SIGNED_OPSET = 21
"""From this one on ONNX Runtime 1.31 and 1.32 fail to load some graphs with int8 activations."""


def zero_point_not_zero(view: QuantView) -> Iterator[Hit]:
    """Find zero points other than 0."""
    found: dict[str, str] = {}
    for item in view.linears:
        name = item.zero_name
        if item.zero_point is not None and name not in found:
            # one tensor may serve many nodes
            others = np.any(item.zero_point.astype(np.float32))
            found[name] = f"zero point {item.zero_point.reshape(-1)[0]}" if others else ""
        if detail := found.get(name):
            yield Hit(name_of(item.node), detail)


def uint8_codes(view: QuantView) -> Iterator[Hit]:
    """Find activations with unsigned codes."""
    for item in view.linears:
        if item.code_type == TensorProto.UINT8 and not item.stored:
            yield Hit(name_of(item.node), "uint8 codes")


def uint8_weights(view: QuantView) -> Iterator[Hit]:
    """Find stored unsigned codes."""
    for item in view.dequantizers:
        if item.code_type == TensorProto.UINT8 and item.stored:
            yield Hit(name_of(item.node), "stored uint8 codes")


def signed_activations(view: QuantView) -> Iterator[Hit]:
    """Find activations quantized to int8."""
    for item in view.quantizers:
        if item.code_type == TensorProto.INT8 and not item.stored:
            yield Hit(name_of(item.node), "int8 codes")


def signed_activations_new_opset(view: QuantView) -> Iterator[Hit]:
    """Find int8 activations in a graph of opset 21 or later; one hit is enough."""
    if opset_of(view.index.model) >= _SIGNED_OPSET:
        hit = next(signed_activations(view), None)
        if hit is not None:
            yield Hit(hit.node, f"{hit.detail}, opset {opset_of(view.index.model)}")


def zero_point_missing(view: QuantView) -> Iterator[Hit]:
    """Find quantizers that do not say which integer type they write."""
    for item in view.quantizers:
        if not item.zero_name and not attribute(item.node, "output_dtype", 0):
            yield Hit(name_of(item.node), "no zero point")


def zero_point_type(view: QuantView) -> Iterator[Hit]:
    """Find code types that no Q/DQ takes, and zero points of another type than their codes."""
    for item in view.linears:
        codes = item.code_type
        if codes is not None and codes not in _CODES and codes not in _LOW_BIT:
            yield Hit(name_of(item.node), f"{type_text(codes)} codes")
        elif (
            item.node.op_type == DEQUANTIZE
            and item.zero_point_type not in (None, codes)
            and codes is not None
        ):
            yield Hit(
                name_of(item.node),
                f"{type_text(codes)} codes, {type_text(item.zero_point_type or 0)} zero point",
            )


def zero_point_shape(view: QuantView) -> Iterator[Hit]:
    """Find zero points that are not one for each scale."""
    for item in view.linears:
        if item.scale is not None and item.zero_point is not None and item.scale.size != item.zero_point.size:
            yield Hit(name_of(item.node), f"{item.scale.size} scales, {item.zero_point.size} zero points")


def scale_at_run_time(view: QuantView) -> Iterator[Hit]:
    """Find activation scales that depend on a graph input."""
    yield from _at_run_time(view, stored=False)


def weight_scale_at_run_time(view: QuantView) -> Iterator[Hit]:
    """Find scales of stored tensors that depend on a graph input."""
    yield from _at_run_time(view, stored=True)


def scale_not_positive(view: QuantView) -> Iterator[Hit]:
    """Find scales that are zero, negative or no number."""
    yield from _scales(view, lambda s: ~(s > 0))


def scale_not_finite(view: QuantView) -> Iterator[Hit]:
    """Find scales that are NaN or infinite."""
    yield from _scales(view, lambda s: ~np.isfinite(s))


def scale_denormal(view: QuantView) -> Iterator[Hit]:
    """Find positive scales too small for a normal number of their type."""
    yield from _scales(
        view, lambda s: (s > 0) & (s < np.finfo(s.dtype).tiny) if s.dtype.kind == "f" else s < 0
    )


def scale_half(view: QuantView) -> Iterator[Hit]:
    """Find scales in half precision, but those of stored blocks: there the engine multiplies in half anyway."""
    for item in view.linears:
        if item.block and item.stored:
            continue
        stored = view.index.tensor(item.scale_name)
        if stored is not None and stored.data_type in (TensorProto.FLOAT16, TensorProto.BFLOAT16):
            yield Hit(name_of(item.node), f"{type_text(stored.data_type)} scale")


def channel_count(view: QuantView) -> Iterator[Hit]:
    """Find per-channel scales whose number is not the codes' number of channels."""
    for item in view.dequantizers:
        shape = _shape_of_codes(view, item)
        if shape is None or item.scale is None or item.scale.ndim != 1 or item.block:
            continue
        axis = item.axis
        count = shape[axis] if -len(shape) <= axis < len(shape) else None
        if shape and item.scale.size not in (1, count):
            yield Hit(
                name_of(item.node), f"{item.scale.size} scales along axis {axis} of shape {list(shape)}"
            )


def wrong_axis(view: QuantView) -> Iterator[Hit]:
    """Find per-channel weights quantized along another axis than the layer's output channels."""
    for item in view.dequantizers:
        shape = _shape_of_codes(view, item)
        if shape is None or len(shape) < 2 or item.scale is None or item.scale.size < 2:
            continue
        if item.block:
            continue
        axis = item.axis % len(shape)
        for node, wanted in _channel_axes(view, item.node.output[0], len(shape)):
            if wanted != axis:
                yield Hit(name_of(item.node), f"axis {axis}, {node.op_type} '{name_of(node)}' needs {wanted}")


def per_channel_activation(view: QuantView) -> Iterator[Hit]:
    """Find activations with more than one scale."""
    for item in view.quantizers:
        if not item.stored and item.scale is not None and item.scale.size > 1:
            yield Hit(name_of(item.node), f"{item.scale.size} scales")


def activation_scale_rank(view: QuantView) -> Iterator[Hit]:
    """Find convolution inputs whose one scale is stored as a vector: it reads as one scale per channel."""
    for item in view.dequantizers:
        if view.is_weight(item) or item.scale is None or item.scale.shape != (1,):
            continue
        if view.reader_behind(item.node.output[0], _is_convolved, joins=True) is not None:
            yield Hit(name_of(item.node), "scale of shape [1]")


def block_scales(view: QuantView) -> Iterator[Hit]:
    """Find blocked weights of layers whose activation is quantized too."""
    for node in view.index.of_type(*LAYERS):
        item = view.weight(node)
        if item is None or item.scale is None or not view.is_quantized(operand(node, 0)):
            continue
        block = item.block
        if block and _blocks_along_axis(item) > 1:
            yield Hit(name_of(item.node), f"block size {block}")


def ragged_blocks(view: QuantView) -> Iterator[Hit]:
    """Find blocked weights whose last block is smaller than the others."""
    for item, shape, blocks in _blocked(view):
        size = shape[item.axis]
        given = item.block
        if size != blocks * given:
            yield Hit(name_of(item.node), f"{size} values in {blocks} blocks of {given}")


def one_block(view: QuantView) -> Iterator[Hit]:
    """Find 4-bit weights of float products with a single block along their input features, or none at all."""
    for node in view.index.of_type("Gemm", "MatMul"):
        item = view.weight(node)
        if item is None or item.code_type not in _FOUR_BITS or item.scale is None:
            continue
        if view.is_quantized(operand(node, 0)):
            continue
        blocked = item.block
        if not blocked or _blocks_along_axis(item) == 1:
            yield Hit(name_of(item.node), f"{type_text(item.code_type or 0)} codes in one block")


def cast_blocks(view: QuantView) -> Iterator[Hit]:
    """Find blocked weights that are cast to half behind their dequantizer."""
    for item, _, blocks in _blocked(view):
        readers = view.readers(item.node.output[0])
        casts = [n for n in readers if n.op_type == "Cast"]
        if casts and blocks > 1:
            yield Hit(name_of(item.node), f"'{name_of(casts[0])}' behind it")


def low_bit_opset(view: QuantView) -> Iterator[Hit]:
    """Find 4-bit codes and blocks in a graph of an opset that has neither; one hit is enough."""
    opset = opset_of(view.index.model)
    if opset >= _BLOCK_OPSET:
        return
    for item in view.dequantizers:
        if item.code_type in _FOUR_BITS or item.block:
            yield Hit(name_of(item.node), f"{type_text(item.code_type or 0)} codes, opset {opset}")
            return


def _blocks_along_axis(item: Linear) -> int:
    """Return how many scales lie along the axis of a dequantizer in blocks; 0 where they have no such axis."""
    axis = item.axis
    shape = () if item.scale is None else item.scale.shape
    return shape[axis] if -len(shape) <= axis < len(shape) else 0


def _blocked(view: QuantView) -> Iterator[tuple[Linear, tuple[int, ...], int]]:
    """Yield every dequantizer of stored codes in blocks, their shape, and how many blocks lie along its axis."""
    for item in view.dequantizers:
        shape = view.stored_shape(item.data)
        if item.block and shape is not None and item.scale is not None:
            axis = item.axis
            if item.scale.ndim == len(shape) and -len(shape) <= axis < len(shape):
                yield item, shape, item.scale.shape[axis]


def low_bit_convolution(view: QuantView) -> Iterator[Hit]:
    """Find convolutions with weight codes below 8 bits."""
    for node in view.index.of_type("Conv"):
        item = view.weight(node)
        codes = item.code_type if item is not None else None
        if item is not None and codes in _FOUR_BITS:
            yield Hit(name_of(item.node), f"{type_text(codes)} codes")


def float8_codes(view: QuantView) -> Iterator[Hit]:
    """Find floating-point codes."""
    for item in view.linears:
        codes = item.code_type
        if codes in (TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E5M2, TensorProto.FLOAT4E2M1):
            yield Hit(name_of(item.node), f"{type_text(codes)} codes")


def weight_rounded_by_engine(view: QuantView) -> Iterator[Hit]:
    """Find float weights that go through a quantizer in the graph."""
    for item in view.quantizers:
        if item.stored:
            yield Hit(name_of(item.node), f"stored float tensor '{item.data}'")


def weight_per_tensor(view: QuantView) -> Iterator[Hit]:
    """Find layer weights with a single scale for several output channels."""
    for node in view.index.of_type(*LAYERS):
        item = view.weight(node)
        shape = _shape_of_codes(view, item) if item is not None else None
        if item is None or shape is None or item.scale is None or len(shape) < 2:
            continue
        if item.scale.size == 1 < shape[weight_axis(node, len(shape))]:
            yield Hit(name_of(item.node), f"one scale for shape {list(shape)}")


def code_minus_128(view: QuantView) -> Iterator[Hit]:
    """Find int8 weight codes of -128."""
    counts: dict[str, int] = {}
    for item in view.dequantizers:
        stored = view.index.tensor(item.data)
        if stored is None or stored.data_type != TensorProto.INT8:
            continue
        if item.data not in counts:
            counts[item.data] = int(np.count_nonzero(to_array(stored) == -128)) if has_values(stored) else 0
        if counts[item.data]:
            yield Hit(name_of(item.node), f"{counts[item.data]} codes of -128")


def integer_bias(view: QuantView) -> Iterator[Hit]:
    """Find int32 bias behind a dequantizer."""
    for item in view.dequantizers:
        if item.code_type == TensorProto.INT32:
            yield Hit(name_of(item.node), "int32 codes")


def float_bias(view: QuantView) -> Iterator[Hit]:
    """Find quantized convolutions with a float bias."""
    for node in view.index.of_type("Conv"):
        bias = operand(node, 2)
        if bias and view.weight(node) is not None and view.dequantizer(bias) is None:
            yield Hit(name_of(node), f"float bias '{bias}'")


def bias_overflow(view: QuantView) -> Iterator[Hit]:
    """Find float biases that ONNX Runtime will convert to int32 and cannot: the output is quantized."""
    for node in view.index.of_type("Conv"):
        bias = view.numbers(operand(node, 2))
        unit = _accumulator_scale(view, node) if bias is not None else None
        quantized = any(r.op_type == QUANTIZE for r in view.readers(node.output[0]))
        if bias is None or unit is None or not quantized or not np.issubdtype(bias.dtype, np.floating):
            continue
        if bias.ndim != 1 or unit.size not in (1, bias.size):
            continue
        # a scale of 0 has a rule of its own; what is divided by it counts as an overflow here
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            codes = np.abs(bias.astype(np.float64) / unit)
        if not bool(np.all(codes < 2**31)):
            yield Hit(name_of(node), f"bias of channel {int(np.argmax(codes))} is {codes.max():.2g} steps")


def bias_scale(view: QuantView) -> Iterator[Hit]:
    """Find integer biases on another grid than the accumulator's."""
    for node in view.index.of_type("Conv", "Gemm"):
        bias = view.dequantizer(operand(node, 2))
        unit = _accumulator_scale(view, node) if bias is not None else None
        if bias is None or bias.scale is None or unit is None or not bias.scale.size or not unit.size:
            continue
        given = bias.scale.astype(np.float64).reshape(-1)
        if given.size not in (1, unit.size) or not np.allclose(given, unit, rtol=1e-5, atol=0):
            yield Hit(name_of(bias.node), f"scale {given[0]:.6g}, activation x weight scale {unit[0]:.6g}")


def _accumulator_scale(view: QuantView, node: NodeProto) -> Array | None:
    """Return activation scale x weight scale per output channel, float64."""
    data, weight = view.activation(operand(node, 0)), view.weight(node)
    if data is None or weight is None or data.scale is None or weight.scale is None or data.scale.size != 1:
        return None
    # scales that are no numbers have rules of their own
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return np.asarray(
            data.scale.astype(np.float64).reshape(-1) * weight.scale.astype(np.float64).reshape(-1)
        )


def mixed_floats(view: QuantView) -> Iterator[Hit]:
    """Find layers whose activation and weight are dequantized to different float types."""
    for node in view.index.of_type(*LAYERS):
        types = [_float_type(view, name) for name in node.input[:2]]
        if len(types) == 2 and None not in types and types[0] != types[1]:
            yield Hit(name_of(node), " and ".join(type_text(t) for t in types if t is not None))


def code_type_unsupported(view: QuantView) -> Iterator[Hit]:
    """Find codes of a type that TensorRT does not parse (int16 and the like)."""
    for item in view.linears:
        codes = item.code_type
        if codes in (TensorProto.INT16, TensorProto.UINT16):
            yield Hit(name_of(item.node), f"{type_text(codes)} codes")


def _scales(view: QuantView, wrong: Callable[[Array], Array]) -> Iterator[Hit]:
    found: dict[str, str] = {}
    for item in view.linears:
        # one tensor may serve many nodes
        if item.scale is not None and item.scale_name not in found:
            found[item.scale_name] = _first_wrong(item.scale.reshape(-1), wrong)
        if detail := found.get(item.scale_name):
            yield Hit(name_of(item.node), detail)


def _first_wrong(scales: Array, wrong: Callable[[Array], Array]) -> str:
    bad = np.flatnonzero(wrong(scales))
    if not bad.size:
        return ""
    where = f" in channel {bad[0]} of {scales.size}" if scales.size > 1 else ""
    return f"scale {scales[bad[0]]}{where}"


def _shape_of_codes(view: QuantView, item: Linear) -> tuple[int, ...] | None:
    """Return the shape of the stored tensor that a weight DQ reads, before or after its quantizer."""
    shape = view.stored_shape(item.data)
    if shape is not None:
        return shape
    source = view.float_weight(item)
    return view.stored_shape(operand(source, 0)) if source is not None else None


def _is_convolved(use: Use) -> bool:
    return use.node.op_type == "Conv" and use.position == 0


def _channel_axes(view: QuantView, tensor: str, rank: int) -> Iterator[tuple[NodeProto, int]]:
    """Yield the layers that read a stored tensor as their weight, and which of its axes is their channels'."""
    pending = [(tensor, list(range(rank)))]
    while pending:
        name, axes = pending.pop()
        for node, position in view.index.readers(name):
            if node.op_type == "Transpose" and position == 0:
                order = attribute(node, "perm", list(reversed(range(rank))))
                if sorted(order) != list(range(rank)):
                    raise malformed(node, f"has the order {order} for {rank} axes")
                pending.append((result(node), [axes[i] for i in order]))
            elif node.op_type in ("Identity", "Cast") and position == 0:
                pending.append((result(node), axes))
            elif node.op_type in (*LAYERS, "ConvTranspose") and position == 1:
                yield node, axes[weight_axis(node, rank)]
            elif node.op_type == "MatMul" and position == 0:
                yield node, axes[rank - 2]


def _at_run_time(view: QuantView, *, stored: bool) -> Iterator[Hit]:
    for item in view.linears:
        sources = view.index.computed_from(item.scale_name)
        if sources and stored == item.stored:
            yield Hit(name_of(item.node), f"scale computed from {', '.join(sources)}")


def _float_type(view: QuantView, tensor: str) -> int | None:
    """Return the float type of a layer operand: a DQ writes the type of its scale."""
    node = view.index.producer(tensor)
    if node is not None and node.op_type in (DEQUANTIZE, QUANTIZE):
        stored = view.index.tensor(operand(node, 1))
        written = attribute(node, "output_dtype", 0)
        return written or (stored.data_type if stored is not None else None)
    if node is not None and node.op_type == "Cast":
        return int(attribute(node, "to", 0)) or None
    kind = view.element_type(tensor)
    return kind if kind in _FLOATS else None
