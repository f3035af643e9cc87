"""What is a node called, and what stands inside it?"""

from __future__ import annotations

from collections.abc import Iterator

from onnx import AttributeProto, GraphProto, NodeProto

from gacq_deploy.errors import ArtifactError, printable

MALFORMED_HINT = (
    "Write the graph again with the tool that made it; `onnx.checker.check_model` says more, too."
)


def name_of(node: NodeProto) -> str:
    """Return the node's name, or what identifies it where it has none, without control characters."""
    return printable(node.name or f"{node.op_type} -> {node.output[0] if node.output else '?'}")


def operand(node: NodeProto, position: int) -> str:
    """Return the tensor that a node reads at a position; "" where it reads none."""
    return node.input[position] if position < len(node.input) else ""


def result(node: NodeProto) -> str:
    """Return the first tensor that a node writes; "" where it writes none."""
    return next(filter(None, node.output), "")


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """Yield the graphs that stand in a node's attributes."""
    for attribute in node.attribute:
        kind = attribute.type
        if kind == AttributeProto.GRAPH:
            yield attribute.g
        elif kind == AttributeProto.GRAPHS:
            yield from attribute.graphs


def malformed(node: NodeProto, problem: str) -> ArtifactError:
    """Return the error about a node that no parser need take, ``problem`` in the words 'has two of them'."""
    return ArtifactError(
        f"Node '{name_of(node)}' ({node.op_type}) {problem}: the graph is malformed.", MALFORMED_HINT
    )
