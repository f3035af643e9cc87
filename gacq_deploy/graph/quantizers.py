"""Where are the quantizers of a Q/DQ graph, and how does a graph reach an engine?"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto

from gacq_deploy.graph.files import write_graph
from gacq_deploy.graph.index import DEQUANTIZE, QUANTIZE, GraphIndex, model_bytes, weight_axis
from gacq_deploy.graph.weights import is_whole
from gacq_deploy.spec import Array

_IN_MEMORY = 1 << 30
"""Bytes of a model; protobuf itself ends at twice as many."""


@dataclass(frozen=True)
class Quantizer:
    """One QuantizeLinear of an activation and the DequantizeLinear nodes that read it."""

    site: str
    """Site in the node's name: the first of the sites that share this tensor."""
    quantize: NodeProto
    dequantize: tuple[NodeProto, ...]


def activation_quantizers(index: GraphIndex) -> list[Quantizer]:
    """Return the quantizers of activations in execution order."""
    return [_quantizer(index, node) for node in index.of_type(QUANTIZE)]


def _quantizer(index: GraphIndex, node: NodeProto) -> Quantizer:
    readers = [use.node for use in index.readers(node.output[0])]
    dequantize = tuple(reader for reader in readers if reader.op_type == DEQUANTIZE)
    return Quantizer(node.name.rpartition("/")[0], node, dequantize)


def stored_dequantizers(index: GraphIndex) -> list[NodeProto]:
    """Return the DequantizeLinear nodes of stored codes: weights and biases."""
    return [n for n in index.of_type(DEQUANTIZE) if index.tensor(n.input[0]) is not None]


def constant_input(index: GraphIndex, node: NodeProto, position: int) -> Array | None:
    """Return the constant that a node reads at an input position, None if absent or computed."""
    return index.constant(node.input[position]) if position < len(node.input) else None


def is_quantization(node: NodeProto) -> bool:
    """Return whether a node is QuantizeLinear or DequantizeLinear."""
    return node.op_type in (QUANTIZE, DEQUANTIZE)


def copy_between(node: NodeProto, source: str, result: str) -> NodeProto:
    """Return a copy of a quantizer or dequantizer that reads ``source`` and writes ``result``."""
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.name = f"{node.name}/{result}"
    copy.input[0] = source
    copy.output[0] = result
    return copy


def in_module_layout(node: NodeProto, weight: Array) -> Array:
    """Return a layer's stored weight or codes with the output channels first, as the module has it."""
    return weight if weight_axis(node, weight.ndim) == 0 else np.ascontiguousarray(weight.T)


@contextmanager
def openable(model: ModelProto) -> Iterator[Path | bytes]:
    """Yield the model as engines open it: bytes, or where weights lie in files a temporary file and those beside it."""
    if is_whole(model) and model_bytes(model) < _IN_MEMORY:
        yield model.SerializeToString()
        return
    with tempfile.TemporaryDirectory(prefix="gacq-parity-") as folder:
        path = Path(folder) / "graph.onnx"
        write_graph(model, path, external_data_mb=1)
        yield path
