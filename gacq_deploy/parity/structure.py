"""Without its quantizers, is a Q/DQ graph still the float graph? A structural hash, whatever the names.

"The float graph" here is the one with the artifact's retrained parameters in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

from onnx import NodeProto

from gacq_deploy.graph.index import GraphIndex, module_of
from gacq_deploy.graph.quantizers import is_quantization, stored_dequantizers
from gacq_deploy.storage.digests import digest_array, digest_bytes

Tokens = dict[str, str]


def wiring_differences(
    float_index: GraphIndex,
    index: GraphIndex,
    layers: Mapping[str, Sequence[NodeProto]],
    weights: Mapping[str, str],
    smoothed: Collection[str] = (),
) -> Iterator[tuple[str, str]]:
    """Yield (where, what) for every node, constant or output that is not the float graph's.

    Args:
        float_index: the float graph.
        index: the Q/DQ graph.
        layers: module -> its layers in the float graph.
        weights: name of a weight's dequantizer in the Q/DQ graph -> module.
        smoothed: tensors of the Q/DQ graph that only smooth the first input of their node, known to be right.
    """
    edges = {(n.output[0], 1): f"weight of {m}" for m, nodes in layers.items() for n in nodes}
    float_tokens, float_nodes = _hash_nodes(float_index, {}, edges, ())
    bias = {
        m: float_tokens[nodes[0].input[2]]
        for m, nodes in layers.items()
        if len(nodes[0].input) > 2 and nodes[0].input[2]
    }
    dequantized = _stored_tokens(index, weights, bias)
    tokens, nodes = _hash_nodes(index, dequantized, {}, smoothed)
    changed, missing = _unmatched(nodes, float_nodes), _unmatched(float_nodes, nodes)
    if changed:
        rest = f"; {len(changed) - 1} nodes after it differ too" if changed[1:] else ""
        yield (
            _where(changed[0]),
            "this node, its attributes, constants or inputs are not those of the float graph with the "
            f"artifact's parameters{rest}",
        )
    elif missing:
        yield _where(missing[0]), "this node of the float graph is missing"
    for name in float_index.outputs:
        if tokens.get(name) != float_tokens.get(name):
            yield name, "this output is not computed as in the float graph"
    if index.outputs != float_index.outputs:
        yield "outputs", f"{index.outputs}, the float graph has {float_index.outputs}"


def _unmatched(
    nodes: Sequence[tuple[NodeProto, str]], others: Sequence[tuple[NodeProto, str]]
) -> list[NodeProto]:
    """Return the nodes without an equal among ``others``, in execution order."""
    left = Counter(token for _, token in others)
    unmatched = []
    for node, token in nodes:
        left[token] -= 1
        if left[token] < 0:
            unmatched.append(node)
    return unmatched


def _stored_tokens(index: GraphIndex, weights: Mapping[str, str], bias: Mapping[str, str]) -> Tokens:
    """Return the tokens of dequantized weights and biases: what stands at that place in the float graph."""
    tokens = {}
    for node in stored_dequantizers(index):
        module = weights.get(node.name)
        if module is not None:
            tokens[node.output[0]] = f"weight of {module}"
            continue
        owners = {module_of(reader) for reader, position in index.readers(node.output[0]) if position == 2}
        owner = owners.pop() if len(owners) == 1 else None
        if owner in bias:
            tokens[node.output[0]] = bias[owner or ""]
    return tokens


def _hash_nodes(
    index: GraphIndex,
    known: Mapping[str, str],
    edges: Mapping[tuple[str, int], str],
    smoothed: Collection[str],
) -> tuple[Tokens, list[tuple[NodeProto, str]]]:
    """Return tensor -> token, and (node, token) in execution order without quantization and smoothing.

    ``known`` gives tokens of tensors beforehand, ``edges`` of single inputs, by (first output, position).
    """
    tokens = {name: _constant_token(index, name) for name in index.initializers}
    for value in index.model.graph.input:
        tokens[value.name] = (
            f"input {value.name} {digest_bytes(value.type.SerializeToString(deterministic=True))}"
        )
    hashed = []
    for node in index.nodes:
        if node.op_type == "Constant":
            tokens[node.output[0]] = _constant_token(index, node.output[0])
            continue
        if is_quantization(node) or node.output[0] in smoothed:
            tokens[node.output[0]] = known.get(node.output[0], tokens.get(node.input[0], ""))
            continue
        inputs = [edges.get((node.output[0], i), tokens.get(name, "")) for i, name in enumerate(node.input)]
        attributes = sorted(a.SerializeToString(deterministic=True) for a in node.attribute)
        head = repr((node.domain, node.op_type, attributes, inputs, len(node.output))).encode()
        token = digest_bytes(head)
        for position, name in enumerate(node.output):
            tokens[name] = f"{token}/{position}"
        hashed.append((node, token))
    return tokens, hashed


def _constant_token(index: GraphIndex, name: str) -> str:
    value = index.constant(name)
    return "not an array" if value is None else f"constant {digest_array(value)}"


def _where(node: NodeProto) -> str:
    return f"{module_of(node) or node.name} ({node.op_type})"
