"""Where may a graph be cut into pieces that run one after the other and compute what the whole does?

A piece is a run of nodes in topological order with the stored weights that they read. What is computed from stored
tensors alone, such as a dequantized weight, belongs to each piece that reads it. Cuts lie where engines would not miss
them: a quantizer stays with its dequantizer and with the layer that it quantizes, on either side. A dequantized tensor
that crosses a cut passes a copy of its pair behind it: it lies on the grid already, so its values stay.

The two products of an attention and the softmax between them may be a piece of their own, of which an engine can run
a few heads at a time: their scores are the largest tensors of a denoiser by far.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise

import onnx
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from gacq_deploy.graph.attention import Attention, find_attentions
from gacq_deploy.graph.index import DEQUANTIZE, HALVES, QUANTIZE, GraphIndex, without_initializers
from gacq_deploy.graph.order import names_read
from gacq_deploy.graph.quantized_layers import WEIGHTED
from gacq_deploy.graph.quantizers import copy_between
from gacq_deploy.graph.weights import PLACE_KEYS, without_values

_CHANCE = (
    "RandomNormal",
    "RandomUniform",
    "RandomNormalLike",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
)


@dataclass(frozen=True)
class Piece:
    """A graph of its own; its weights are where the whole graph has them.

    ``inputs`` maps the names of its inputs to tensors of the whole graph; ``outputs`` are such tensors. ``dropped`` are
    those that no later piece reads. ``attention`` is set where the piece is one attention's two products.
    """

    model: ModelProto
    inputs: Mapping[str, str]
    outputs: tuple[str, ...]
    dropped: tuple[str, ...]
    attention: Attention | None = None


def cut_into_pieces(
    model: ModelProto, *, weight_bytes: int, attention_apart: bool = True, watched: Collection[str] = ()
) -> tuple[Piece, ...]:
    """Return the pieces of a graph in the order in which they run.

    Args:
        model: its weights may lie in another file.
        weight_bytes: what the weights of a piece may take; more where no cut can be made in between.
        attention_apart: make the products of each attention a piece of their own.
        watched: tensors that are outputs, too, of the piece that computes them, and end it where a cut can be made:
            else all of a piece would be held together.
    """
    return _Cutting(model, weight_bytes, attention_apart, frozenset(watched)).pieces()


def held_bytes(tensor: TensorProto) -> int:
    """Return what an engine's copy of a stored tensor takes: half precision is computed with as float32."""
    size = 4 if tensor.data_type in HALVES else helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return int(math.prod(tensor.dims) * size)


def tensor_types(model: ModelProto) -> dict[str, ValueInfoProto]:
    """Return type and shape of each tensor of the main graph for which they can be inferred."""
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    infos = (*graph.value_info, *graph.input, *graph.output)
    return {info.name: info for info in infos if info.type.tensor_type.elem_type}


class _Cutting:
    """One graph on its way into pieces."""

    def __init__(self, model: ModelProto, budget: int, apart: bool, watched: frozenset[str]) -> None:
        self._index = index = GraphIndex(model)
        self._budget = budget
        self._types = tensor_types(model)
        self._base = without_initializers(model)
        for part in ("node", "input", "output", "value_info"):
            self._base.graph.ClearField(part)
        ordered = index.in_order()
        self._fixed = _stored_or_folded(index, ordered)
        moving = [n for n in ordered if not self._fixed.issuperset(n.output)]
        self._folded = [n for n in ordered if self._fixed.issuperset(n.output)]
        self._attentions = find_attentions(index, self._fixed, self._types) if apart else ()
        self._flow = _gathered(moving, self._attentions)
        self._place = {name: i for i, node in enumerate(self._flow) for name in node.output if name}
        self._last = self._last_read(watched)
        self._watched = watched
        self._kept = watched | frozenset(index.outputs)

    def pieces(self) -> tuple[Piece, ...]:
        bounds = [0, *self._cuts(), len(self._flow)]
        attention = {self._place[a.output]: a for a in self._attentions}
        return tuple(self._piece(a, b, attention) for a, b in pairwise(bounds))

    def _last_read(self, watched: frozenset[str]) -> dict[str, int]:
        """Return for each tensor that is not stored the last node that reads it; graph outputs are read at the end."""
        last = {name: place for name, place in self._place.items() if name in watched}
        for i, node in enumerate(self._flow):
            last.update(dict.fromkeys(names_read(node), i))
        last.update(dict.fromkeys(self._index.outputs, len(self._flow)))
        return {name: i for name, i in last.items() if name not in self._fixed}

    def _cuts(self) -> list[int]:
        """Return the places of the cuts, each the number of nodes before it."""
        barred, crossing = self._barred(), self._crossing()
        held = list(accumulate(self._weights(), initial=0))
        behind = {self._place[name] + 1 for name in self._watched & self._place.keys()}
        forced = behind.union(*map(self._edges, self._attentions)) - barred
        cuts, start, candidates = list[int](), 0, list[int]()
        for place in range(1, len(self._flow)):
            if place in forced:
                cuts.append(place)
                start, candidates = place, []
                continue
            candidates += [] if place in barred else [place]
            is_full = held[place + 1] - held[start] > self._budget and held[place + 1] > held[place]
            if not is_full:
                continue
            # where few tensors cross, which is between blocks, but not so early that the piece is hardly one
            least = max((held[place] - held[start]) / 2, 1)
            worth = [c for c in candidates if held[c] - held[start] >= least]
            if worth:
                start = min(worth, key=lambda c: (crossing[c], -c))
                cuts.append(start)
                candidates = [c for c in candidates if c > start]
        return cuts

    def _edges(self, attention: Attention) -> tuple[int, int]:
        last = self._place[attention.output]
        return last + 1 - len(attention.nodes), last + 1

    def _barred(self) -> set[int]:
        """Return the places where a cut would take apart what an engine has to see as one."""
        barred = {p for a in self._attentions for p in range(self._edges(a)[0] + 1, self._edges(a)[1])}
        for name, made in self._place.items():
            maker = self._flow[made]
            if maker.op_type == QUANTIZE or name not in self._types:
                last = self._last.get(name, made)
            elif maker.op_type in WEIGHTED:
                quantizers = [use.node for use in self._index.readers(name) if use.node.op_type == QUANTIZE]
                last = max((self._place[n.output[0]] for n in quantizers), default=made)
            else:
                continue
            barred.update(range(made + 1, last + 1))
        return barred

    def _weights(self) -> list[int]:
        """Return the bytes of stored tensors that each node is the first to need."""
        seen = set[str]()
        found = []
        for node in self._flow:
            new = self._stored_behind(names_read(node)) - seen
            seen |= new
            found.append(sum(held_bytes(self._index.initializers[name]) for name in new))
        return found

    def _stored_behind(self, names: Iterable[str]) -> set[str]:
        pending, seen = list(names), set[str]()
        while pending:
            name = pending.pop()
            if name in seen or name not in self._fixed:
                continue
            seen.add(name)
            maker = self._index.producer(name)
            pending += names_read(maker) if maker is not None else []
        return seen & self._index.initializers.keys()

    def _crossing(self) -> list[int]:
        """Return how many tensors cross each place."""
        steps = [0] * (len(self._flow) + 2)
        for name, made in self._place.items():
            if (last := self._last.get(name, made)) > made:
                steps[made + 1] += 1
                steps[last + 1] -= 1
        total, found = 0, []
        for step in steps:
            total += step
            found.append(total)
        return found

    def _piece(self, first: int, end: int, attentions: Mapping[int, Attention]) -> Piece:
        nodes = self._flow[first:end]
        made = {name for node in nodes for name in node.output}
        read = [name for node in nodes for name in names_read(node) if name]
        taken = dict.fromkeys(name for name in read if name not in made and name not in self._fixed)
        outputs = [n for node in nodes for n in node.output if n in self._kept or self._last.get(n, 0) >= end]
        if end == len(self._flow):
            outputs += [n for n in self._index.outputs if n in self._fixed]
        inputs = dict[str, str]()
        pairs = list[NodeProto]()
        for name in taken:
            given, pair = self._given(name)
            inputs[given] = name
            pairs += pair
        found = attentions.get(end - 1)
        attention = found if found is not None and len(found.nodes) == end - first else None
        model = self._model([*pairs, *nodes], inputs, outputs, attention)
        dropped = tuple(n for n in sorted({*taken, *outputs}) if self._last.get(n, end) < end)
        return Piece(model, inputs, tuple(outputs), dropped, attention)

    def _given(self, name: str) -> tuple[str, list[NodeProto]]:
        """Return what the input for a tensor is called, and the pair that a dequantized one passes behind it."""
        dequantize = self._index.producer(name)
        quantize = None
        if dequantize is not None and dequantize.op_type == DEQUANTIZE:
            quantize = self._index.producer(dequantize.input[0])
        if dequantize is None or quantize is None or quantize.op_type != QUANTIZE:
            return name, []
        given, codes = f"{name}/given", f"{name}/given.codes"
        return given, [copy_between(quantize, given, codes), copy_between(dequantize, codes, name)]

    def _model(
        self,
        nodes: list[NodeProto],
        inputs: Mapping[str, str],
        outputs: Iterable[str],
        attention: Attention | None,
    ) -> ModelProto:
        piece = ModelProto()
        piece.CopyFrom(self._base)
        graph = piece.graph
        wanted = {name for node in nodes for name in names_read(node)} | set(outputs)
        behind = list[NodeProto]()
        for node in reversed(self._folded):
            if not wanted.isdisjoint(node.output):
                behind.append(node)
                wanted.update(names_read(node))
        graph.node.extend([*reversed(behind), *nodes])
        for name in filter(self._index.initializers.__contains__, sorted(wanted)):
            graph.initializer.append(_reference(self._index.initializers[name]))
        graph.input.extend(self._info(name, given, attention) for given, name in inputs.items())
        graph.output.extend(self._info(name, name, attention) for name in outputs)
        return piece

    def _info(self, name: str, called: str, attention: Attention | None) -> ValueInfoProto:
        """Return what is known of a tensor, under the name that it has in a piece."""
        info = ValueInfoProto()
        if name in self._types:
            info.CopyFrom(self._types[name])
        info.name = called
        if attention is not None:
            _open_heads(info)
        return info


def _stored_or_folded(index: GraphIndex, ordered: Iterable[NodeProto]) -> set[str]:
    """Return every tensor that is stored or computed from stored ones alone."""
    fixed = set(index.initializers) - set(index.inputs)
    for node in ordered:
        if node.op_type not in _CHANCE and all(name in fixed for name in names_read(node) if name):
            fixed.update(filter(None, node.output))
    return fixed


def _gathered(nodes: list[NodeProto], attentions: Iterable[Attention]) -> list[NodeProto]:
    """Return the nodes in an order in which those of an attention stand together, in front of its output.

    Only its own nodes read what is computed inside it, so all of them can wait for the last one.
    """
    late = {id(node): attention for attention in attentions for node in attention.nodes}
    return list(_in_new_order(nodes, late))


def _in_new_order(nodes: Iterable[NodeProto], late: Mapping[int, Attention]) -> Iterator[NodeProto]:
    for node in nodes:
        attention = late.get(id(node))
        if attention is None:
            yield node
        elif node is attention.nodes[-1]:
            yield from attention.nodes


def _reference(tensor: TensorProto) -> TensorProto:
    """Return a stored tensor as a file names it; where it lies is known to whoever opens the piece."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return tensor
    kept = without_values(tensor.name, tensor.data_type, tensor.dims)
    kept.external_data.extend(entry for entry in tensor.external_data if entry.key in PLACE_KEYS)
    return kept


def _open_heads(info: ValueInfoProto) -> None:
    """Leave the axis of the heads open, of which a run may take a part."""
    dims = info.type.tensor_type.shape.dim
    if len(dims) > 2:
        dims[len(dims) - 3].Clear()
