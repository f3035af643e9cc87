"""Which nodes are the two products of an attention, and the softmax between them?"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from onnx import NodeProto, ValueInfoProto

from gacq_deploy.graph.index import GraphIndex, attribute

_BETWEEN = frozenset({"Add", "Sub", "Mul", "Div", "Cast", "Where", "IsNaN", "Softmax", "Clip", "Identity"})
"""Operators that compute each head by itself, with scores of the shape ``[..., heads, queries, keys]``."""
_MOST_NODES = 12


@dataclass(frozen=True)
class Attention:
    """The nodes from the product of queries and keys to that with the values, in topological order.

    ``queries`` ``[..., heads, Q, d]`` and ``keys`` ``[..., heads, d, K]`` are what the first product reads, ``output``
    ``[..., heads, Q, d]`` is what the last one writes. Of every other tensor that the nodes read, an axis of heads is
    the third from the end, if it has one.
    """

    nodes: tuple[NodeProto, ...]
    queries: str
    keys: str
    output: str


def find_attentions(
    index: GraphIndex, fixed: Collection[str], types: Mapping[str, ValueInfoProto]
) -> tuple[Attention, ...]:
    """Return the attentions of a graph whose heads can be computed one by one.

    Args:
        index: of the graph.
        fixed: tensors that are stored, or computed from stored ones.
        types: type and shape of tensors, as far as they are known.
    """
    places = {id(node): i for i, node in enumerate(index.in_order())}
    found = []
    for softmax in index.of_type("Softmax"):
        first, last = _product_before(index, softmax, fixed), _product_behind(index, softmax)
        if first is None or last is None:
            continue
        inside = _between(index, first, last)
        nodes = tuple(sorted(inside, key=lambda node: places[id(node)]))
        if nodes and _by_heads(index, nodes, fixed, types):
            found.append(Attention(nodes, first.input[0], first.input[1], last.output[0]))
    return tuple(found)


def _product_before(index: GraphIndex, node: NodeProto, fixed: Collection[str]) -> NodeProto | None:
    for _ in range(_MOST_NODES):
        makers = [index.producer(name) for name in node.input if name not in fixed]
        before = next((m for m in makers if m is not None and m.op_type in {"MatMul", *_BETWEEN}), None)
        if before is None or before.op_type == "MatMul":
            return before
        node = before
    return None


def _product_behind(index: GraphIndex, node: NodeProto) -> NodeProto | None:
    for _ in range(_MOST_NODES):
        readers = [use.node for use in index.readers(node.output[0])]
        node = next((r for r in readers if r.op_type in _BETWEEN), readers[0]) if readers else node
        if node.op_type not in _BETWEEN:
            return node if node.op_type == "MatMul" else None
    return None


def _between(index: GraphIndex, first: NodeProto, last: NodeProto) -> list[NodeProto]:
    """Return the nodes through which scores pass; none where they go elsewhere, too."""
    inside, pending = {id(first): first, id(last): last}, [first]
    while pending:
        for name in filter(None, pending.pop().output):
            readers = [use.node for use in index.readers(name)]
            if name in index.outputs or any(r is not last and r.op_type not in _BETWEEN for r in readers):
                return []
            pending += [r for r in readers if id(r) not in inside]
            inside.update((id(r), r) for r in readers)
        if len(inside) > _MOST_NODES:
            return []
    scores = {name for node in inside.values() if node is not last for name in node.output}
    return list(inside.values()) if last.input[0] in scores and last.input[1] not in scores else []


def _by_heads(
    index: GraphIndex,
    nodes: tuple[NodeProto, ...],
    fixed: Collection[str],
    types: Mapping[str, ValueInfoProto],
) -> bool:
    """Tell whether all that the nodes read has a known rank, and what is stored is the same for all heads."""
    made = {name for node in nodes for name in node.output}
    read = {name for node in nodes for name in node.input if name} - made
    operands = {*nodes[0].input, nodes[-1].input[1]}
    ranks = {name: _rank(types, name) for name in read - set(fixed)}
    known = all(rank is not None for rank in ranks.values())
    alike = {ranks.get(name) for name in operands}
    rank = next(iter(alike)) or 0
    stored = all(_same_for_all_heads(index, types, name) for name in read & set(fixed))
    last_axis = all(attribute(n, "axis", -1) in (-1, rank - 1) for n in nodes if n.op_type == "Softmax")
    return known and len(alike) == 1 and rank > 2 and stored and last_axis


def _rank(types: Mapping[str, ValueInfoProto], name: str) -> int | None:
    kind = types[name].type.tensor_type if name in types else None
    return len(kind.shape.dim) if kind is not None and kind.HasField("shape") else None


def _same_for_all_heads(index: GraphIndex, types: Mapping[str, ValueInfoProto], name: str) -> bool:
    stored = index.tensor(name)
    if stored is not None:
        shape = list(stored.dims)
    elif (rank := _rank(types, name)) is not None:
        shape = [d.dim_value for d in types[name].type.tensor_type.shape.dim][:rank]
    else:
        return False
    return len(shape) < 3 or shape[-3] == 1
