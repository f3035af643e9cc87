"""What feeds what in an ONNX graph?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from gacq_deploy.graph.nodes import malformed
from gacq_deploy.graph.order import in_order
from gacq_deploy.graph.weights import has_values, to_array, widened, without_values
from gacq_deploy.spec import Array

MODULE_KEY = "gacq.module"
"""Node metadata: dotted name of the module the node came from."""
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
STANDARD_DOMAINS = ("", "ai.onnx")
"""Two spellings of ONNX's own domain."""
_LISTED_INPUTS = 16
"""Graph inputs that are named of those that a tensor depends on: no list may grow with the graph."""
_KEPT_BYTES = 2**20
"""Larger constants are read anew each time: kept, they would hold a second copy of the model's weights."""


class Use(NamedTuple):
    """A place where a tensor is read: the node, and the position among its inputs."""

    node: NodeProto
    position: int


class GraphIndex:
    """Producers, consumers and constants of a model's main graph, as they were when the index was made.

    ``nodes`` are the graph's own protobuf objects: editing one edits the model, but not the index.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.model = model
        self.nodes: list[NodeProto] = list(graph.node)
        self.initializers: dict[str, TensorProto] = {t.name: t for t in graph.initializer}
        self.inputs: list[str] = [i.name for i in graph.input if i.name not in self.initializers]
        self.outputs: list[str] = [o.name for o in graph.output]
        self.producers: dict[str, NodeProto] = {}
        self.consumers: dict[str, list[Use]] = {}
        for node in self.nodes:
            # "" stands for what is left out
            for name in filter(None, node.output):
                self.producers[name] = node
            for position, name in enumerate(node.input):
                if name:
                    self.consumers.setdefault(name, []).append(Use(node, position))
        self._stored = {t.name: t for t in graph.initializer}
        for node in self.of_type("Constant"):
            value = next((a.t for a in node.attribute if a.name == "value" and a.HasField("t")), None)
            if value is not None:
                self._stored.update(dict.fromkeys(filter(None, node.output), value))
        self._widened = self._find_widened()
        """Result of a Cast to float32 -> the tensor stored in half precision that it casts."""
        for name, half in self._widened.items():
            self._stored[name] = without_values(name, TensorProto.FLOAT, half.dims)
        self._constants: dict[str, Array | None] = {}
        self._in_order: list[NodeProto] | None = None

    def _find_widened(self) -> dict[str, TensorProto]:
        found = {}
        for node in self.of_type("Cast"):
            half = self.initializers.get(node.input[0]) if node.input else None
            if (
                half is not None
                and half.data_type in HALVES
                and attribute(node, "to", 0) == TensorProto.FLOAT
            ):
                found[node.output[0]] = half
        return found

    def in_order(self) -> list[NodeProto]:
        """Return the nodes, each behind those that it reads from.

        Raises:
            ArtifactError: a node depends on its own output.
        """
        if self._in_order is None:
            self._in_order = in_order(self.nodes)
        return self._in_order

    def of_type(self, *op_types: str) -> Iterator[NodeProto]:
        """Yield the nodes of these types, in graph order."""
        return (self.nodes[i] for i in sorted(i for kind in op_types for i in self._positions.get(kind, ())))

    def readers(self, tensor: str) -> list[Use]:
        """Return every place that reads ``tensor``."""
        return self.consumers.get(tensor, [])

    def producer(self, tensor: str) -> NodeProto | None:
        """Return the node that computes ``tensor``; None for inputs and initializers."""
        return self.producers.get(tensor)

    def constant(self, tensor: str) -> Array | None:
        """Return the numbers of an initializer or ``Constant`` node; None for what is computed or has no values.

        A weight that is stored in half precision and cast to float32 is a constant, too: its float32 values.
        """
        if tensor in self._constants:
            return self._constants[tensor]
        value = self._read_constant(tensor)
        if value is None or value.nbytes <= _KEPT_BYTES:
            self._constants[tensor] = value
        return value

    def is_widened(self, tensor: str) -> bool:
        """Tell whether a tensor is a weight that is stored in half precision, cast to float32."""
        return tensor in self._widened

    def tensor(self, name: str) -> TensorProto | None:
        """Return the stored tensor behind an initializer or ``Constant`` node, else None.

        Of one that is stored in half precision and cast to float32 it is the shape without values.
        """
        return self._stored.get(name)

    def computed_from(self, tensor: str) -> tuple[str, ...]:
        """Return the graph inputs that ``tensor`` depends on, the first few in the alphabet.

        Empty for constants and what folds into one.
        """
        return self._sources.get(tensor, ())

    @cached_property
    def _sources(self) -> dict[str, tuple[str, ...]]:
        found: dict[str, tuple[str, ...]] = {name: (name,) for name in self.inputs}
        for node in self.in_order():
            parts = {found[name] for name in node.input if name in found}
            if not parts:
                continue
            joined = parts.pop() if len(parts) == 1 else tuple(sorted(set().union(*parts))[:_LISTED_INPUTS])
            for name in node.output:
                found.setdefault(name, joined)
        return found

    @cached_property
    def _positions(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for position, node in enumerate(self.nodes):
            found.setdefault(node.op_type, []).append(position)
        return found

    def _read_constant(self, tensor: str) -> Array | None:
        if half := self._widened.get(tensor):
            return to_array(half).astype(np.float32) if has_values(half) else None
        stored = self.tensor(tensor)
        if stored is None or stored.data_type == TensorProto.STRING or not has_values(stored):
            return None
        return to_array(stored)


def attribute(node: NodeProto, name: str, default: Any) -> Any:
    """Return an attribute's value, or ``default``.

    Raises:
        ArtifactError: it is of another kind than ``default``.
    """
    for item in node.attribute:
        if item.name == name:
            value = helper.get_attribute_value(item) if item.type else None
            if default is not None and type(value) is not type(default):
                raise malformed(
                    node, f"has an attribute '{name}' of value {value!r:.99}, no {type(default).__name__}"
                )
            return value
    return default


def module_of(node: NodeProto) -> str | None:
    """Return the dotted name of the module the node came from."""
    return next((p.value for p in node.metadata_props if p.key == MODULE_KEY), None)


def set_module(node: NodeProto, module: str) -> NodeProto:
    """Write where ``node`` came from; return it."""
    helper.set_metadata_props(node, {MODULE_KEY: module})
    return node


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of the standard operator set; 0 if the model imports none."""
    return next((int(o.version) for o in model.opset_import if o.domain in STANDARD_DOMAINS), 0)


def replace_nodes(model: onnx.ModelProto, nodes: Iterable[NodeProto]) -> None:
    """Give the graph another node list."""
    kept = list(nodes)
    # protobuf owns the listed nodes: copy them out before the list is cleared
    copies = [NodeProto.FromString(n.SerializeToString()) for n in kept]
    del model.graph.node[:]
    model.graph.node.extend(copies)


def model_bytes(model: ModelProto) -> int:
    """Return about how many bytes ``model`` takes; protobuf itself refuses to count beyond 2 GB."""
    weights = sum(
        math.prod(t.dims) * helper.tensor_dtype_to_np_dtype(t.data_type).itemsize
        for t in model.graph.initializer
    )
    return int(weights) + int(without_initializers(model).ByteSize())


def without_initializers(model: ModelProto) -> ModelProto:
    """Return a copy without weights; they are never copied, however large."""
    result = ModelProto()
    _copy_fields(model, result, leave_out="graph")
    _copy_fields(model.graph, result.graph, leave_out="initializer")
    return result


def _copy_fields(source: ModelProto | GraphProto, target: ModelProto | GraphProto, *, leave_out: str) -> None:
    for descriptor, value in source.ListFields():
        name = descriptor.name
        if name == leave_out:
            continue
        if hasattr(value, "extend"):
            getattr(target, name).extend(value)
        elif hasattr(value, "CopyFrom"):
            getattr(target, name).CopyFrom(value)
        else:
            setattr(target, name, value)


def drop_unused_initializers(model: onnx.ModelProto) -> None:
    """Remove initializers that no node reads and no output names."""
    used = {name for node in model.graph.node for name in node.input}
    used |= {output.name for output in model.graph.output}
    kept = [t for t in model.graph.initializer if t.name in used]
    if len(kept) == len(model.graph.initializer):
        return
    # from the end, so that the positions still to come do not move
    for index in reversed(range(len(model.graph.initializer))):
        if model.graph.initializer[index].name not in used:
            del model.graph.initializer[index]


def with_float_weights(model: ModelProto) -> ModelProto:
    """Return the graph whose weights that are stored in half precision and cast to float32 are stored as float32.

    Those that lie in a file stay there: they are widened when asked for.
    """
    index = GraphIndex(model)
    casts = [node for node in index.of_type("Cast") if index.is_widened(node.output[0])]
    if not casts:
        return model
    result = without_initializers(model)
    dropped = {id(node) for node in casts}
    replace_nodes(result, [node for node in index.nodes if id(node) not in dropped])
    result.graph.initializer.extend(model.graph.initializer)
    for node in casts:
        result.graph.initializer.append(widened(index.initializers[node.input[0]], node.output[0]))
    drop_unused_initializers(result)
    return result


def weight_axis(node: NodeProto, rank: int) -> int:
    """Return the output-channel axis of a weight of ``rank`` dimensions, as engines want it.

    Conv 0; ConvTranspose 1; Gemm 0 with ``transB``, else 1; MatMul the last.
    """
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return {"Conv": 0, "ConvTranspose": 1}.get(node.op_type, rank - 1)
