"""Which layers would overflow in kernels that add two 8-bit products in 16 bits?

Such a kernel (``vpmaddubsw``) multiplies unsigned activations, 0 to 255, by signed weights, and clamps the sum of two
neighbouring products to 16 bits. Whatever the activations, that sum fits if the weights of one sign in the pair add up
to 128 at most: 255 * 128 = 32640, 255 * 129 = 32895 > 32767.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, numpy_helper

from gacq_deploy.backends.processor import adds_pairs_in_16_bits, instruction_cap, this_processor
from gacq_deploy.engines.catalogue import REFERENCE
from gacq_deploy.graph.header import read_header
from gacq_deploy.graph.quantized_layers import CODES, weighted_nodes

PAIR_LIMIT = 128
"""Largest sum of two weights of one sign whose products with 255 fit into 16 bits."""


@dataclass(frozen=True)
class OverflowingLayer:
    """A layer in which ``pairs`` of its ``of`` pairs of neighbouring weights can exceed 16 bits."""

    name: str
    """The module's, as it stands before its codes' suffix; of another graph the codes' own."""
    pairs: int
    of: int

    def __str__(self) -> str:
        return f"{self.name} ({self.pairs} of {self.of} pairs)"


def overflowing_layers(model: Path | bytes) -> tuple[OverflowingLayer, ...]:
    """Return the layers of a Q/DQ graph that such kernels may compute wrong for some activations, in graph order.

    Each layer whose weights are stored as 8-bit codes is judged as if its activations were 8-bit too. Codes of 4 bits
    are safe by arithmetic.

    Raises:
        ArtifactError: the file is missing, corrupt, or its external data is not its own.
    """
    proto = read_header(model)
    folder = str(model.parent) if isinstance(model, Path) else ""
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    found = []
    for node, dequantize in weighted_nodes(proto):
        if stored[dequantize.input[0]].data_type not in (TensorProto.INT8, TensorProto.UINT8):
            continue
        orders = summed_orders(node, _signed_codes(dequantize, stored, folder))
        pairs = np.concatenate([pairs_of(order) for order in orders])
        wrong = overflow(pairs)
        if node.op_type == "ConvTranspose":
            # kernels for AVX-512 halve these weights first: an odd code loses its last bit
            wrong |= (pairs % 2).any(1)
        if count := int(np.count_nonzero(wrong)):
            found.append(OverflowingLayer(dequantize.input[0].removesuffix(CODES), count, len(pairs)))
    return tuple(found)


def pairs_of(order: NDArray[np.int16]) -> NDArray[np.int16]:
    """Return [pairs, 2] of [..., channels]: neighbours in each row; an odd one at its end stands beside a zero."""
    if order.shape[-1] % 2:
        order = np.pad(order, [(0, 0)] * (order.ndim - 1) + [(0, 1)])
    return order.reshape(-1, 2)


def overflow(pairs: NDArray[np.int16]) -> NDArray[np.bool_]:
    """Tell of [pairs, 2] weights which can exceed 16 bits for some activations."""
    above, below = (half(pairs, 0).sum(1, dtype=np.int16) for half in (np.maximum, np.minimum))
    found: NDArray[np.bool_] = np.maximum(above, -below) > PAIR_LIMIT
    return found


def summed_orders(node: NodeProto, codes: NDArray[np.int16]) -> tuple[NDArray[np.int16], ...]:
    """Return the weights of a layer with neighbours in a kernel's sums last, in each order that some kernel takes.

    Neighbours are the input channels at one kernel position. Of a grouped convolution with an odd number of channels a
    group, kernels for AVX2 run on from one position to the next, those for AVX-512 do not: found by trying, and tried
    in ``test_saturation.py``.
    """
    given = {attribute.name: attribute.i for attribute in node.attribute}
    groups = given.get("group", 1)
    match node.op_type:
        case "Conv":
            by_position = np.moveaxis(codes, 1, -1)
            if groups > 1 and codes.shape[1] % 2:
                return by_position, by_position.reshape(len(codes), -1)
            return (by_position,)
        case "ConvTranspose":
            return (np.moveaxis(codes.reshape(groups, -1, *codes.shape[1:]), 1, -1),)
        case "Gemm" if given.get("transB", 0):
            return (codes,)
        case _:
            return (np.moveaxis(codes, -2, -1),)


def why_inexact(engine: str, model: Path | bytes) -> tuple[str, str] | None:
    """Return why OpenVINO would compute a graph wrong on this machine, and what works instead; None: it would not.

    Args:
        engine: its name, for the text.
        model: the graph; read only where the kernels add in 16 bits.

    Raises:
        ArtifactError: as for :func:`overflowing_layers`.
    """
    layers = overflowing_layers(model) if adds_pairs_in_16_bits() else ()
    if not layers:
        return None
    cap = instruction_cap()
    where = f"{this_processor().name}, under {cap}," if cap else this_processor().name
    pairs = sum(layer.pairs for layer in layers)
    reason = (
        f"{engine} would compute this graph wrong here: its kernels on {where} add two 8-bit products in 16 bits, and "
        f"{pairs} pairs of weights in {len(layers)} layers can exceed that, first {layers[0]}."
    )
    return reason, remedy()


def remedy() -> str:
    """Return what works instead."""
    if (cap := instruction_cap()) and this_processor().has_vnni:
        return f"Take the engine {REFERENCE}, which is exact here, or unset {cap.partition('=')[0]}."
    return (
        f"Take the engine {REFERENCE}, which is exact here, or a processor with VNNI (avx512_vnni, avx_vnni)."
    )


def _signed_codes(dequantize: NodeProto, stored: dict[str, TensorProto], folder: str) -> NDArray[np.int16]:
    """Return the codes as the kernels see them: the zero point taken off."""
    codes = numpy_helper.to_array(stored[dequantize.input[0]], folder).astype(np.int16)
    if len(dequantize.input) < 3:
        return codes
    zero = numpy_helper.to_array(stored[dequantize.input[2]], folder).astype(np.int16)
    if not zero.any():
        return codes
    axis = next((a.i for a in dequantize.attribute if a.name == "axis"), 1)
    shape = np.ones(codes.ndim, int)
    shape[axis] = zero.size  # 1 for one zero point of the whole tensor
    difference: NDArray[np.int16] = codes - zero.reshape(shape)
    return difference
