"""In which order can the nodes of a graph run?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from graphlib import CycleError, TopologicalSorter

from onnx import GraphProto, NodeProto

from gacq_deploy.graph.nodes import malformed, name_of, subgraphs

_SHOWN = 5
"""Nodes of a cycle that the error names."""


def in_order(nodes: Sequence[NodeProto]) -> list[NodeProto]:
    """Return the nodes of one graph, each behind those that it reads from; the order given where that is one.

    Engines sort the nodes themselves, though ONNX asks for them in order.

    Raises:
        ArtifactError: a node depends on its own output.
    """
    makers = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    reads = [[makers[name] for name in names_read(node) if name in makers] for node in nodes]
    if all(maker < i for i, before in enumerate(reads) for maker in before):
        return list(nodes)
    try:
        return [nodes[i] for i in TopologicalSorter(dict(enumerate(reads))).static_order()]
    except CycleError as error:
        cycle = [nodes[i] for i in error.args[1][1:]]
    if len(cycle) == 1:
        raise malformed(cycle[0], "reads its own output")
    more = f" and {len(cycle) - 1 - _SHOWN} more" if len(cycle) - 1 > _SHOWN else ""
    listed = ", ".join(f"'{name_of(node)}'" for node in cycle[1 : 1 + _SHOWN])
    raise malformed(cycle[0], f"is in a cycle with {listed}{more}")


def names_read(node: NodeProto) -> Sequence[str]:
    """Return the tensors that a node reads, and those of its own graph that a graph inside it reads."""
    inside = list(subgraphs(node))
    return [*node.input, *_read_from_inside(inside)] if inside else node.input


def _read_from_inside(graphs: Sequence[GraphProto]) -> Iterator[str]:
    pending: list[tuple[GraphProto, tuple[frozenset[str], ...]]] = [(graph, ()) for graph in graphs]
    while pending:
        graph, outer = pending.pop()
        known = (names_made(graph), *outer)
        for name in _read_in(graph):
            if not any(name in made for made in known):
                yield name
        pending += [(deeper, known) for inner in graph.node for deeper in subgraphs(inner)]


def names_made(graph: GraphProto) -> frozenset[str]:
    """Return every tensor that a graph takes, stores or computes."""
    given = [i.name for i in graph.input] + [t.name for t in graph.initializer]
    given += [t.values.name for t in graph.sparse_initializer]
    return frozenset(given).union(*(node.output for node in graph.node)) - {""}


def _read_in(graph: GraphProto) -> Iterator[str]:
    yield from (output.name for output in graph.output)
    for node in graph.node:
        yield from filter(None, node.input)
