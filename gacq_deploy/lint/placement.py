"""Where must quantizers not stand, and where are they missing?"""

from __future__ import annotations

from collections.abc import Iterator

from gacq_deploy.graph.index import DEQUANTIZE, QUANTIZE, Use
from gacq_deploy.graph.nodes import name_of, operand, result
from gacq_deploy.lint.view import LAYERS, MOST_BRANCHES, Hit, Linear, QuantView

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
        if view.is_quantized(operand(node, 0)):
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
        if any(not view.same_numbers(operand(nodes[0], 1), operand(n, 1)) for n in nodes[1:]):
            yield Hit(
                name_of(nodes[0]), f"tensor '{tensor}' has {len(nodes)} quantizers with different scales"
            )


def concat_branches(view: QuantView) -> Iterator[Hit]:
    """Find layers that read a concatenation of tensors with different scales."""
    for node in view.index.of_type("Concat"):
        found = view.branches(result(node))
        count = len(found.dequantizers)
        reader = view.reader_behind(result(node), _is_layers_data, joins=True)
        if count > 1 and not found.alike and reader is not None:
            more = " or more" if count == MOST_BRANCHES else ""
            yield Hit(name_of(node), f"{count}{more} branches feed '{name_of(reader)}' with different scales")


def attention_product(view: QuantView) -> Iterator[Hit]:
    """Find products of two activations that are both quantized."""
    yield from _products(view, operands=2, detail="both operands of a product of two activations quantized")


def product_of_one(view: QuantView) -> Iterator[Hit]:
    """Find products of two activations of which one is quantized."""
    yield from _products(view, operands=1, detail="one operand of a product of two activations quantized")


def transposed_convolution(view: QuantView) -> Iterator[Hit]:
    """Find quantized transposed convolutions."""
    for node in view.index.of_type("ConvTranspose"):
        if view.weight(node) is not None or view.activation(operand(node, 0)) is not None:
            yield Hit(name_of(node), "quantized ConvTranspose")


def quantized_conv_output(view: QuantView) -> Iterator[Hit]:
    """Find convolutions whose output is quantized for others than the next layer."""
    for item in view.quantizers:
        node = view.index.producer(item.data)
        if node is None or node.op_type != "Conv":
            continue
        values = [name for reader in view.readers(item.node.output[0]) for name in reader.output[:1]]
        is_read = any(view.reader_behind(name, _is_any) for name in values)
        if not is_read or any(view.reader_behind(name, _is_no_layers_data) for name in values):
            yield Hit(name_of(item.node), f"output of '{name_of(node)}'")


def float_conv_output(view: QuantView) -> Iterator[Hit]:
    """Find quantized convolutions whose output is not quantized."""
    for node in view.index.of_type("Conv"):
        if view.weight(node) is None or not view.is_quantized(operand(node, 0)):
            continue
        readers = view.readers(node.output[0])
        if not readers or any(r.op_type != QUANTIZE for r in readers):
            yield Hit(name_of(node), "output stays float")


def orphan_quantizer(view: QuantView) -> Iterator[Hit]:
    """Find quantizers whose codes no dequantizer reads."""
    for item in view.quantizers:
        if view.reader_behind(item.node.output[0], _takes_codes, joins=True) is None:
            yield Hit(name_of(item.node), f"codes '{item.node.output[0]}' are never dequantized")


def orphan_dequantizer(view: QuantView) -> Iterator[Hit]:
    """Find dequantizers that nobody reads, or whose codes come from no quantizer."""
    outputs = frozenset(view.index.outputs)
    for item in view.dequantizers:
        output = item.node.output[0]
        if not view.readers(output) and output not in outputs:
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
        origin = view.index.producer(operand(source, 0))
        if origin is not None and origin.op_type == "Conv":
            continue
        reader = view.reader_behind(item.node.output[0], _is_inside)
        if reader is not None:
            yield Hit(name_of(item.node), f"feeds {reader.op_type} '{name_of(reader)}'")


def nothing_quantized(view: QuantView) -> Iterator[Hit]:
    """Find graphs without Q/DQ."""
    if not view.quantizers and not view.dequantizers:
        yield Hit("(graph)", f"{len(view.index.nodes)} nodes, no Q/DQ")


def _weight_only(view: QuantView, op_types: tuple[str, ...]) -> Iterator[Hit]:
    for node in view.index.of_type(*op_types):
        if view.weight(node) is not None and not view.is_quantized(operand(node, 0)):
            yield Hit(name_of(node), "weight quantized, activation float")


def _products(view: QuantView, *, operands: int, detail: str) -> Iterator[Hit]:
    for node in view.index.of_type("MatMul"):
        if view.is_product(node) and sum(view.is_quantized(name) for name in node.input) == operands:
            yield Hit(name_of(node), detail)


def _has_source(view: QuantView, item: Linear) -> bool:
    if not view.index.computed_from(item.data):
        return True
    node = view.source(item.data)
    return node is not None and (
        node.op_type == QUANTIZE or "Linear" in node.op_type or "Integer" in node.op_type
    )


def _is_any(_: Use) -> bool:
    return True


def _is_layers_data(use: Use) -> bool:
    return use.node.op_type in LAYERS and use.position == 0


def _is_no_layers_data(use: Use) -> bool:
    return not _is_layers_data(use)


def _takes_codes(use: Use) -> bool:
    kind = use.node.op_type
    return kind == DEQUANTIZE or "Integer" in kind or kind.startswith("QLinear")


def _is_inside(use: Use) -> bool:
    return use.node.op_type in _INSIDE and use.position == 0
