"""Where must quantizers not stand, and where are they missing?"""

from __future__ import annotations

from collections.abc import Iterator

from onnx import NodeProto

from gacq_deploy.graph.index import DEQUANTIZE, QUANTIZE
from gacq_deploy.lint.view import LAYERS, Hit, Linear, QuantView, name_of, same_values

_NORMS = (
    "InstanceNormalization",
    "GroupNormalization",
    "LayerNormalization",
    "BatchNormalization",
    "RMSNormalization",
)
_INSIDE = (*_NORMS, "Sigmoid", "Softmax")
"""Operators of kernels that engines fuse (normalization and SiLU, softmax): a pair of Q and DQ breaks them up."""


def activation_only(view: QuantView) -> Iterator[Hit]:
    """Find layers with a quantized activation and a float weight."""
    for node in view.index.of_type(*LAYERS):
        if not view.stored_weight(node) or view.weight(node) is not None:
            continue
        if view.is_quantized(node.input[0]):
            yield Hit(name_of(node), "activation quantized, weight float")


def weight_only_conv(view: QuantView) -> Iterator[Hit]:
    """Find convolutions with a quantized weight and a float activation."""
    yield from _weight_only(view, ("Conv",))


def weight_only_matmul(view: QuantView) -> Iterator[Hit]:
    """Find matrix products with a quantized weight and a float activation."""
    yield from _weight_only(view, ("Gemm", "MatMul"))


def several_scales(view: QuantView) -> Iterator[Hit]:
    """Find tensors that are quantized more than once, with different scales."""
    for tensor, uses in view.index.consumers.items():
        nodes = [u.node for u in uses if u.node.op_type == QUANTIZE and u.position == 0]
        scales = [view.index.constant(n.input[1]) for n in nodes]
        if any(not same_values(scales[0], s) for s in scales[1:]):
            yield Hit(
                name_of(nodes[0]), f"tensor '{tensor}' has {len(nodes)} quantizers with different scales"
            )


def concat_branches(view: QuantView) -> Iterator[Hit]:
    """Find layers that read a concatenation of tensors with different scales."""
    for node in view.index.of_type("Concat"):
        scales = [b.scale for b in view.leaves(node.output[0]) if b is not None]
        if len(scales) < 2 or all(same_values(scales[0], s) for s in scales[1:]):
            continue
        readers = [
            n for n, i in view.readers_behind(node.output[0], joins=True) if n.op_type in LAYERS and i == 0
        ]
        if readers:
            yield Hit(
                name_of(node), f"{len(scales)} branches feed '{name_of(readers[0])}' with different scales"
            )


def attention_product(view: QuantView) -> Iterator[Hit]:
    """Find products of two activations that are both quantized."""
    yield from _products(view, operands=2, detail="both operands of a product of two activations quantized")


def product_of_one(view: QuantView) -> Iterator[Hit]:
    """Find products of two activations of which one is quantized."""
    yield from _products(view, operands=1, detail="one operand of a product of two activations quantized")


def transposed_convolution(view: QuantView) -> Iterator[Hit]:
    """Find quantized transposed convolutions."""
    for node in view.index.of_type("ConvTranspose"):
        if view.weight(node) is not None or view.activation(node.input[0]) is not None:
            yield Hit(name_of(node), "quantized ConvTranspose")


def quantized_conv_output(view: QuantView) -> Iterator[Hit]:
    """Find convolutions whose output is quantized for others than the next layer."""
    for item in view.quantizers:
        node = view.index.producer(item.data)
        readers = [r for d in view.readers(item.node.output[0]) for r in view.readers_behind(d.output[0])]
        for_layers = bool(readers) and all(n.op_type in LAYERS and position == 0 for n, position in readers)
        if node is not None and node.op_type == "Conv" and not for_layers:
            yield Hit(name_of(item.node), f"output of '{name_of(node)}'")


def float_conv_output(view: QuantView) -> Iterator[Hit]:
    """Find quantized convolutions whose output is not quantized."""
    for node in view.index.of_type("Conv"):
        if view.weight(node) is None or not view.is_quantized(node.input[0]):
            continue
        readers = view.readers(node.output[0])
        if not readers or any(r.op_type != QUANTIZE for r in readers):
            yield Hit(name_of(node), "output stays float")


def orphan_quantizer(view: QuantView) -> Iterator[Hit]:
    """Find quantizers whose codes no dequantizer reads."""
    for item in view.quantizers:
        readers = [n for n, _ in view.readers_behind(item.node.output[0], joins=True)]
        if not any(
            n.op_type == DEQUANTIZE or "Integer" in n.op_type or n.op_type.startswith("QLinear")
            for n in readers
        ):
            yield Hit(name_of(item.node), f"codes '{item.node.output[0]}' are never dequantized")


def orphan_dequantizer(view: QuantView) -> Iterator[Hit]:
    """Find dequantizers that nobody reads, or whose codes come from no quantizer."""
    for item in view.dequantizers:
        output = item.node.output[0]
        if not view.readers(output) and output not in view.index.outputs:
            yield Hit(name_of(item.node), f"'{output}' is never read")
        elif not _has_source(view, item):
            yield Hit(name_of(item.node), f"'{item.data}' is neither stored nor quantized")


def double_pair(view: QuantView) -> Iterator[Hit]:
    """Find quantizers that read a dequantizer."""
    for item in view.quantizers:
        node = view.index.producer(item.data)
        if node is not None and node.op_type == DEQUANTIZE:
            yield Hit(name_of(item.node), f"reads '{name_of(node)}'")


def residual_branches(view: QuantView) -> Iterator[Hit]:
    """Find additions of two quantized activations."""
    for node in view.index.of_type("Add"):
        if len(node.input) == 2 and all(view.activation(name) is not None for name in node.input):
            yield Hit(name_of(node), "both branches quantized")


def inside_normalization(view: QuantView) -> Iterator[Hit]:
    """Find pairs inside a normalization, SiLU or softmax (convolution outputs have their own rule)."""
    for item in view.dequantizers:
        source = view.index.producer(item.data)
        if view.is_weight(item) or source is None or source.op_type != QUANTIZE:
            continue
        origin = view.index.producer(source.input[0])
        if origin is not None and origin.op_type == "Conv":
            continue
        readers = [
            n for n, index in view.readers_behind(item.node.output[0]) if n.op_type in _INSIDE and index == 0
        ]
        if readers:
            yield Hit(name_of(item.node), f"feeds {readers[0].op_type} '{name_of(readers[0])}'")


def nothing_quantized(view: QuantView) -> Iterator[Hit]:
    """Find graphs without Q/DQ."""
    if not view.quantizers and not view.dequantizers:
        yield Hit("(graph)", f"{len(view.index.nodes)} nodes, no Q/DQ")


def _weight_only(view: QuantView, op_types: tuple[str, ...]) -> Iterator[Hit]:
    for node in view.index.of_type(*op_types):
        if view.weight(node) is not None and not view.is_quantized(node.input[0]):
            yield Hit(name_of(node), "weight quantized, activation float")


def _products(view: QuantView, *, operands: int, detail: str) -> Iterator[Hit]:
    for node in view.index.of_type("MatMul"):
        if view.is_product(node) and sum(view.is_quantized(name) for name in node.input) == operands:
            yield Hit(name_of(node), detail)


def _has_source(view: QuantView, item: Linear) -> bool:
    if not view.index.computed_from(item.data):
        return True
    node = view.index.producer(item.data)
    while node is not None and (origin := next(iter(_sources(view, node)), None)) is not None:
        node = view.index.producer(origin)
    return node is not None and (
        node.op_type == QUANTIZE or "Linear" in node.op_type or "Integer" in node.op_type
    )


def _sources(view: QuantView, node: NodeProto) -> list[str]:
    origin = view.handed_on(node)
    return view.joined(node) if origin is None else [origin]
