"""What is a graph in half precision? The form from which a strongly typed engine computes in FP16.

TensorRT takes every type from the graph, so an INT8 graph in float32 becomes an engine of INT8 and float32.
Here everything between the quantizers becomes half, while the scales of Q and DQ stay float32: half scales lose
accuracy below 6e-5, and quantizing by a half reciprocal moves one code in a hundred.

The converter of onnxconverter-common 1.16 was tried and not taken: graphs of the demo model came out illegal (a
Cast inside the graph keeps writing float32 to readers of half, and so do the scales of Resize), it clamps weights
to 1e4 and lifts small ones to 1e-7, casts a tensor once for each of its readers, and hands the whole model with
its weights to type inference, which ends at 2 GB.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

import gacq_deploy
from gacq_deploy.build_trt.float16.float32_nodes import Float32Node, find_float32_nodes
from gacq_deploy.build_trt.float16.types import (
    FLOAT,
    HALF,
    NodeTypes,
    Slot,
    lean_copy,
    stored_floats,
)
from gacq_deploy.errors import ExportError
from gacq_deploy.graph.index import (
    GraphIndex,
    module_of,
    set_module,
    with_float_weights,
    without_initializers,
)
from gacq_deploy.graph.weights import Store, stored
from gacq_deploy.spec import Array

DEFAULT_MARGIN = 4.0
"""Measured states are a sample: a tensor must fit into half with two bits to spare."""
_SUBGRAPHS = (AttributeProto.GRAPH, AttributeProto.GRAPHS)
_SUFFIX = {HALF: "half", FLOAT: "float"}
_HINT = "Export the float graph again: one flat graph of standard operators."


@dataclass(frozen=True)
class HalfGraph:
    """A half-precision graph with float32 inputs and outputs.

    ``float32_nodes`` are the nodes that compute in float32. ``flushed`` counts, by initializer, the values that were
    not zero and are zero in half.
    """

    model: ModelProto
    float32_nodes: tuple[Float32Node, ...]
    flushed: Mapping[str, int] = field(default_factory=dict)


def to_half(
    model: ModelProto,
    *,
    ranges: Mapping[str, float] | None = None,
    margin: float = DEFAULT_MARGIN,
    store: Store = stored,
) -> HalfGraph:
    """Return a float32 graph, with or without Q/DQ, in half precision; ``model`` stays as it is.

    Inputs and outputs keep their names and types. Q and DQ stay float32 between Casts. A tensor is cast at most
    once to each type, by a node ``<tensor>/to_half`` or ``<tensor>/to_float`` right behind its producer.

    Args:
        model: its weights, which may lie in files; they are not copied before they are half.
        ranges: largest |x| by tensor, as :func:`~gacq_deploy.build_trt.float16.ranges.measure_ranges` returns them.
        store: decides where weights lie that become half.
        margin: readers and writers of a tensor stay float32 if ``margin`` times its range exceeds 65504.

    Raises:
        ExportError: the graph holds half tensors, subgraphs, functions, sparse weights, NaN or weights that were
            not loaded; or the result is not legal.
    """
    _require_flat(model)
    model = with_float_weights(model)
    index, types = GraphIndex(model), NodeTypes(model)
    float32_nodes = find_float32_nodes(index, types, ranges or {}, margin)
    edit = _Edit(index, types, float32_nodes, store)
    result = edit.result()
    _ensure(result)
    return HalfGraph(result, tuple(float32_nodes.values()), edit.flushed)


class _Edit:
    """One conversion: first what every reader wants, then the graph that gives it to them."""

    def __init__(
        self, index: GraphIndex, types: NodeTypes, float32_nodes: Mapping[str, Float32Node], store: Store
    ) -> None:
        self._index = index
        self._store = store
        self._types = types
        self._float32_nodes = float32_nodes
        self._taken = {*index.initializers, *index.producers, *index.inputs}
        self._written: dict[str, int] = {n: FLOAT for n in index.inputs if types.of.get(n) == FLOAT}
        """Type that a computed float tensor has where it is made."""
        self._names: dict[str, dict[int, str]] = {}
        """Float tensor -> type -> its name in the half graph."""
        self.flushed: dict[str, int] = {}
        self._plan()

    def result(self) -> ModelProto:
        """Return the half graph."""
        result = without_initializers(self._index.model)
        graph = result.graph
        del graph.node[:], graph.value_info[:]
        for name in self._index.inputs:
            graph.node.extend(self._casts(name))
        for node in self._index.nodes:
            graph.node.extend(self._rewritten(node))
            for name in node.output:
                graph.node.extend(self._casts(name))
        for tensor in self._index.initializers.values():
            graph.initializer.extend(self._stored(tensor))
        graph.value_info.extend(self._value_infos())
        result.producer_name, result.producer_version = "gacq-deploy", gacq_deploy.__version__
        return result

    def _plan(self) -> None:
        wanted: dict[str, set[int]] = {}
        for node in self._index.nodes:
            if node.op_type != "Constant":
                self._written |= {s.tensor: self._type(node, s) for s in self._types.outputs(node)}
            for slot in self._types.inputs(node):
                wanted.setdefault(slot.tensor, set()).add(self._type(node, slot))
        outputs = [name for name in self._index.outputs if self._types.of.get(name) == FLOAT]
        for name in outputs:
            wanted.setdefault(name, set()).add(FLOAT)
        for tensor, kinds in wanted.items():
            self._names[tensor] = self._names_of(tensor, kinds, is_output=tensor in outputs)

    def _names_of(self, tensor: str, wanted: set[int], *, is_output: bool) -> dict[int, str]:
        """Return a tensor's name in each type that some reader wants, and in the one it is computed in."""
        here = self._written.get(tensor)
        # an output keeps its name as float32, and so does what is stored in both types
        keeps = here if here is not None and not is_output else max(wanted, key=lambda k: k == FLOAT)
        names: dict[int, str] = {}
        for kind in sorted(wanted if here is None else wanted | {here}):
            names[kind] = tensor if kind == keeps else self._new_name(tensor, kind)
        return names

    def _type(self, node: NodeProto, slot: Slot) -> int:
        if slot.may_be_half is None:
            return self._written.get(slot.tensor, FLOAT)
        return HALF if slot.may_be_half and node.output[0] not in self._float32_nodes else FLOAT

    def _new_name(self, tensor: str, kind: int) -> str:
        name = f"{tensor}.{_SUFFIX[kind]}"
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name

    def _rewritten(self, node: NodeProto) -> Iterator[NodeProto]:
        if node.op_type == "Constant" and self._types.of.get(node.output[0]) == FLOAT:
            yield from self._constants(node)
            return
        new = NodeProto()
        new.CopyFrom(node)
        for slot in self._types.inputs(node):
            new.input[slot.position] = self._names[slot.tensor][self._type(node, slot)]
        for slot in self._types.outputs(node):
            kind = self._written[slot.tensor]
            new.output[slot.position] = self._names.get(slot.tensor, {}).get(kind, slot.tensor)
            if node.op_type == "Cast":
                next(a for a in new.attribute if a.name == "to").i = kind
        yield new

    def _casts(self, tensor: str) -> Iterator[NodeProto]:
        here = self._written.get(tensor)
        names = self._names.get(tensor, {})
        for kind, name in names.items():
            if here is not None and kind != here:
                cast = f"{tensor}/to_{_SUFFIX[kind]}"
                yield self._placed(
                    helper.make_node("Cast", [names[here]], [name], name=cast, to=kind), tensor
                )

    def _placed(self, cast: NodeProto, tensor: str) -> NodeProto:
        """Say which module a Cast belongs to: its tensor's, or for an input of the graph its first reader's."""
        producer = self._index.producer(tensor)
        if producer is None:
            readers = self._index.readers(tensor)
            producer = readers[0].node if readers else None
        module = None if producer is None else module_of(producer)
        return cast if module is None else set_module(cast, module)

    def _stored(self, tensor: TensorProto) -> Iterator[TensorProto]:
        names = self._names.get(tensor.name, {})
        if FLOAT in names or not names:
            yield tensor
        if HALF in names:
            yield self._store(self._as_half(tensor.name), names[HALF])

    def _constants(self, node: NodeProto) -> Iterator[NodeProto]:
        for kind, name in self._names.get(node.output[0], {FLOAT: node.output[0]}).items():
            values = (
                self._as_half(node.output[0]) if kind == HALF else stored_floats(self._index, node.output[0])
            )
            assert values is not None, f"Constant '{node.name}' has no value"
            new = NodeProto()
            new.CopyFrom(node)
            new.output[0] = name
            new.name = node.name if name == node.output[0] else f"{name}/Constant"
            del new.attribute[:]
            new.attribute.append(helper.make_attribute("value", numpy_helper.from_array(values)))
            yield new

    def _as_half(self, tensor: str) -> Array:
        values = stored_floats(self._index, tensor)
        assert values is not None, f"'{tensor}' is not a stored float32 tensor"
        half: Array = values.astype(np.float16)
        flushed = int(np.count_nonzero(values)) - int(np.count_nonzero(half))
        if flushed:
            self.flushed[tensor] = flushed
        return half

    def _value_infos(self) -> Iterator[ValueInfoProto]:
        ends = {*self._index.inputs, *self._index.outputs}
        for tensor in (*self._index.inputs, *self._index.producers):
            known = self._types.info(tensor)
            if known is None:
                continue
            kinds = self._names.get(tensor) or {self._written.get(tensor, self._types.of[tensor]): tensor}
            for kind, name in kinds.items():
                if name not in ends:
                    info = ValueInfoProto(name=name, type=known)
                    info.type.tensor_type.elem_type = kind
                    yield info


def _require_flat(model: ModelProto) -> None:
    inner = [node for node in model.graph.node if _holds_graph(node)]
    if inner:
        raise ExportError(
            f"Node '{inner[0].name}' ({inner[0].op_type}) holds a subgraph; {len(inner)} such nodes.", _HINT
        )
    if model.functions:
        raise ExportError(f"The graph calls {len(model.functions)} functions of its own.", _HINT)
    if model.graph.sparse_initializer:
        raise ExportError(f"{len(model.graph.sparse_initializer)} weights are sparse.", _HINT)


def _holds_graph(node: NodeProto) -> bool:
    return any(attribute.type in _SUBGRAPHS for attribute in node.attribute)


def _ensure(model: ModelProto) -> None:
    try:
        onnx.shape_inference.infer_shapes(lean_copy(model), check_type=True, strict_mode=True)
    except onnx.shape_inference.InferenceError as error:
        first = str(error).strip().partition("\n")[0]
        raise ExportError(
            f"The half-precision graph is not legal ONNX: {first}", "Please report the model's class."
        ) from error
