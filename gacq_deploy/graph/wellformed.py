"""Would every parser take this file for a graph at all? Asked before anything walks through it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import NamedTuple

import onnx
from onnx import (
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    OperatorSetIdProto,
    TensorProto,
    ValueInfoProto,
)  # fmt: skip

from gacq_deploy.errors import ArtifactError, ResourceError
from gacq_deploy.graph.index import STANDARD_DOMAINS, GraphIndex
from gacq_deploy.graph.nodes import MALFORMED_HINT, malformed, name_of, subgraphs
from gacq_deploy.graph.order import in_order, names_made
from gacq_deploy.graph.signature import violation_of
from gacq_deploy.graph.stored import damage_of, is_element_type, tensors_of

MOST_NODES = 500_000
"""Nodes of a graph that the rules look through: several times the largest denoisers, in about a minute."""
_Names = tuple[frozenset[str], ...]
"""Tensors that a node may read: of its own graph, then of each graph around it."""


def require_wellformed(model: ModelProto, where: str) -> GraphIndex:
    """Return the index of ``model`` if its nodes, names and stored tensors make a graph, whatever engines take.

    Args:
        model: with its external data loaded.
        where: what the errors call it, "ONNX file x.onnx".

    Raises:
        ArtifactError: a cycle; a tensor that two nodes make, or none; a name that is given twice or is no UTF-8;
            inputs, outputs or attributes that a standard operator does not take; stored data that does not fit its
            shape and type; an unknown element type.
        ResourceError: more than ``MOST_NODES`` nodes.
    """
    try:
        _require_version(model)
        return _require_nodes(model)
    except ArtifactError as error:
        raise ArtifactError(f"{where}: {error.message}", error.hint) from None
    except ResourceError as error:
        raise ResourceError(f"{where}: {error.message}", error.hint) from None


def _require_version(model: ModelProto) -> None:
    if not 0 < model.ir_version <= onnx.IR_VERSION:
        raise ArtifactError(
            f"The format has version {model.ir_version}; 1 to {onnx.IR_VERSION} are known.",
            "Write the graph again, or install a newer onnx.",
        )
    for entry in model.metadata_props:
        _require_text(entry.value, "the metadata")


class _Scope(NamedTuple):
    """A graph, or the body of a function, and what holds in it."""

    graph: GraphProto | FunctionProto
    outer: tuple[frozenset[str], ...]
    """Tensors of each graph around it."""
    opsets: Mapping[str, int]


def _require_nodes(model: ModelProto) -> GraphIndex:
    """Check every graph: the main one, those inside its nodes, and the functions."""
    _require_no_recursion(model.functions)
    pending = [_Scope(model.graph, (), _opsets(model.opset_import))]
    pending += [_Scope(function, (), _opsets(function.opset_import)) for function in model.functions]
    count = 0
    while pending:
        scope = pending.pop()
        count += len(scope.graph.node)
        if count > MOST_NODES:
            raise ResourceError(
                f"It has more than {MOST_NODES} nodes, too many to look through.", "Judge a part of it."
            )
        known = _require_scope(scope)
        if scope.graph is not model.graph:
            in_order(scope.graph.node)
        pending += [
            _Scope(inner, known, scope.opsets) for node in scope.graph.node for inner in subgraphs(node)
        ]
    index = GraphIndex(model)
    index.in_order()
    return index


def _require_scope(scope: _Scope) -> _Names:
    """Check one graph but for its order; return what graphs inside it may read."""
    graph = scope.graph
    if isinstance(graph, GraphProto):
        stored = {tensor.name: tensor for tensor in graph.initializer}
        _require_graph(graph, inside=bool(scope.outer))
        known, outputs = (names_made(graph), *scope.outer), [output.name for output in graph.output]
    else:
        stored = {}
        _require_one_maker(graph.node, frozenset(graph.input))
        known, outputs = (frozenset(graph.input).union(*(n.output for n in graph.node)),), list(graph.output)
    for name in outputs:
        if not _is_made(name, known):
            raise ArtifactError(f"Output '{name}' of '{graph.name}' is made by nothing.", MALFORMED_HINT)
    for node in graph.node:
        _require_node(node, scope.opsets, stored, known)
    return known


def _opsets(imports: Iterable[OperatorSetIdProto]) -> Mapping[str, int]:
    """Return the version of each domain's operators."""
    for opset in imports:
        if opset.version < 1:
            raise ArtifactError(
                f"The operator set of domain '{opset.domain}' has version {opset.version}.", MALFORMED_HINT
            )
    return {"" if o.domain in STANDARD_DOMAINS else o.domain: o.version for o in reversed(list(imports))}


def _require_graph(graph: GraphProto, *, inside: bool) -> None:
    """Check the names that a graph gives, its stored tensors and the types of what it takes."""
    given = [i.name for i in graph.input]
    stored = [t.name for t in graph.initializer] + [t.values.name for t in graph.sparse_initializer]
    _require_names(given, "inputs")
    _require_names(stored, "stored tensors")
    # a stored tensor may be named among the inputs: then it is that input's default
    _require_one_maker(graph.node, frozenset(given + stored))
    sparse = [tensor for t in graph.sparse_initializer for tensor in (t.values, t.indices)]
    for tensor in (*graph.initializer, *sparse):
        if damage := damage_of(tensor):
            raise ArtifactError(f"{_stored_tensor(tensor.name, graph)} {damage}.", MALFORMED_HINT)
    taken = frozenset(given)
    for info in (*graph.input, *graph.output, *graph.value_info):
        _require_type(info, needed=not inside and info.name in taken)


def _stored_tensor(name: str, graph: GraphProto) -> str:
    reader = next((node for node in graph.node if name in node.input), None)
    read_by = "" if reader is None else f", which node '{name_of(reader)}' ({reader.op_type}) reads,"
    return f"Stored tensor '{name}'{read_by}"


def _require_one_maker(nodes: Sequence[NodeProto], given: frozenset[str]) -> None:
    made, names = set(given), set[str]()
    for node in nodes:
        for output in filter(None, node.output):
            _require_text(output, "a node")
            if output in made:
                raise malformed(node, f"makes tensor '{output}', which is there already")
            made.add(output)
        if node.name and node.name in names:
            raise malformed(node, "has the name of another node")
        names.add(node.name)


def _require_type(info: ValueInfoProto, *, needed: bool) -> None:
    kind = info.type.WhichOneof("value")
    if kind is None and needed:
        raise ArtifactError(f"Input '{info.name}' has no type.", MALFORMED_HINT)
    number = info.type.tensor_type.elem_type
    if kind == "tensor_type" and not is_element_type(number) and (needed or number):
        raise ArtifactError(f"Tensor '{info.name}' is of the unknown element type {number}.", MALFORMED_HINT)


def _require_node(
    node: NodeProto, opsets: Mapping[str, int], stored: Mapping[str, TensorProto], known: _Names
) -> None:
    for text in (node.name, node.op_type, node.domain):
        _require_text(text, "a node")
    if not node.op_type:
        raise malformed(node, "has no operator")
    if ("" if node.domain in STANDARD_DOMAINS else node.domain) not in opsets:
        raise malformed(node, f"is of domain '{node.domain}', of which no operator set is imported")
    if problem := violation_of(node, opsets.get("", 0), stored) or _damage_inside(node):
        raise malformed(node, problem)
    for name in node.input:
        if name and not _is_made(name, known):
            raise malformed(node, f"reads '{name}', which nothing makes")


def _damage_inside(node: NodeProto) -> str:
    damages = ((tensor, damage_of(tensor)) for tensor in tensors_of([node]))
    return next(
        (f"stores a tensor '{tensor.name}' that {damage}" for tensor, damage in damages if damage), ""
    )


def _is_made(name: str, known: _Names) -> bool:
    return any(name in made for made in known)


def _require_names(names: Sequence[str], what: str) -> None:
    for name in names:
        _require_text(name, what)
        if not name:
            raise ArtifactError(f"One of the {what} has no name.", MALFORMED_HINT)
    if twice := next((name for name, count in Counter(names).items() if count > 1), ""):
        raise ArtifactError(f"Two {what} are called '{twice}'.", MALFORMED_HINT)


def _require_text(name: str | bytes, what: str) -> None:
    # protobuf hands on as bytes what is no UTF-8
    if not isinstance(name, str):
        raise ArtifactError(f"A text of {what} is no UTF-8: {name!r}.", MALFORMED_HINT)


def _require_no_recursion(functions: Iterable[FunctionProto]) -> None:
    listed = list(functions)
    calls = {(f.domain, f.name): {(node.domain, node.op_type) for node in f.node} for f in listed}
    try:
        TopologicalSorter({key: called & calls.keys() for key, called in calls.items()}).prepare()
    except CycleError as error:
        raise ArtifactError(f"Function '{error.args[1][0][1]}' calls itself.", MALFORMED_HINT) from None
