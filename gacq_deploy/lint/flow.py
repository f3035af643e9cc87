"""From where do values reach a tensor, and who reads them, seen through operators that only move or join them?

Every answer is found for all tensors in one pass through the nodes, then kept: a graph of others may be as deep and as
wide as it likes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from functools import cached_property
from typing import NamedTuple

from onnx import NodeProto

from gacq_deploy.graph.index import DEQUANTIZE, QUANTIZE, GraphIndex, Use
from gacq_deploy.graph.nodes import name_of, operand, result

UseFilter = Callable[[Use], bool]


class Origin(NamedTuple):
    """The tensor whose values another one has, and how many casts lie between them."""

    tensor: str
    casts: int


class Handover(NamedTuple):
    """The tensors whose values a node writes again: one that it moves, or those that it joins."""

    sources: tuple[str, ...]
    joins: bool
    casts: bool


class Flow:
    """How values move through a graph whose nodes are well formed.

    Args:
        index: of the graph.
        moved: the input whose values a node hands on, None where it makes new ones.
        joined: the inputs that a node joins into one tensor; none if it does not.
    """

    def __init__(
        self,
        index: GraphIndex,
        moved: Callable[[NodeProto], str | None],
        joined: Callable[[NodeProto], list[str]],
    ) -> None:
        self._index = index
        self._steps: dict[str, Handover] = {}
        for node in index.in_order():
            origin = moved(node)
            sources = (origin,) if origin is not None else tuple(joined(node))
            if sources:
                step = Handover(sources, origin is None, node.op_type == "Cast")
                self._steps.update(dict.fromkeys(filter(None, node.output), step))
        self._readers: dict[tuple[UseFilter, bool], dict[str, NodeProto]] = {}
        self._named: tuple[Collection[str], dict[str, str]] | None = None

    def joins(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Yield each tensor that is joined from others, and those, none before what it is joined from."""
        return ((tensor, step.sources) for tensor, step in self._steps.items() if step.joins)

    def origin(self, tensor: str) -> Origin:
        """Return where a tensor's values were made or joined."""
        return self._origins.get(tensor) or Origin(tensor, 0)

    def first_source(self, tensor: str) -> str:
        """Return where a tensor's values were made; of what was joined, those of the first branch."""
        return self._first_sources.get(tensor, tensor)

    def first_named(self, node: NodeProto, names: Collection[str]) -> str | None:
        """Return which of ``names`` stands first among a layer and the nodes that bring it its operands.

        They are looked through operand by operand, from the layer back to the quantizers.

        Args:
            node: the layer.
            names: of nodes; passed as the same object, they are looked for once for all layers.
        """
        if self._named is None or self._named[0] is not names:
            self._named = names, self._find_named(names)
        found = self._named[1]
        if name_of(node) in names:
            return name_of(node)
        return next((found[name] for name in node.input if name in found), None)

    def reader_behind(self, tensor: str, wanted: UseFilter, *, joins: bool = False) -> NodeProto | None:
        """Return the first reader of a tensor's values that is wanted.

        Args:
            tensor: computed by a node.
            wanted: a function; passed as the same object, it is asked once for all tensors.
            joins: look through joins, too.
        """
        if (wanted, joins) not in self._readers:
            self._readers[wanted, joins] = self._find_readers(wanted, joins=joins)
        return self._readers[wanted, joins].get(tensor)

    @cached_property
    def _origins(self) -> dict[str, Origin]:
        found: dict[str, Origin] = {}
        for tensor, step in self._steps.items():
            if not step.joins:
                before = found.get(step.sources[0]) or Origin(step.sources[0], 0)
                found[tensor] = Origin(before.tensor, before.casts + step.casts)
        return found

    @cached_property
    def _first_sources(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for tensor, step in self._steps.items():
            found[tensor] = found.get(step.sources[0], step.sources[0])
        return found

    def _find_named(self, names: Collection[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for node in self._index.in_order():
            if node.op_type == QUANTIZE:
                sources: tuple[str, ...] = ()
            elif node.op_type == DEQUANTIZE:
                sources = (operand(node, 0),)
            elif step := self._steps.get(result(node)):
                sources = step.sources
            else:
                continue
            first = next((found[name] for name in sources if name in found), None)
            first = name_of(node) if name_of(node) in names else first
            if first is not None:
                found.update(dict.fromkeys(filter(None, node.output), first))
        return found

    def _find_readers(self, wanted: UseFilter, *, joins: bool) -> dict[str, NodeProto]:
        found: dict[str, NodeProto] = {}
        behind: dict[str, NodeProto] = {}
        for node in reversed(self._index.in_order()):
            for tensor in filter(None, node.output):
                first = self._first_reader(tensor, wanted, behind, joins=joins)
                if first is not None:
                    found[tensor] = behind[result(node)] = first
        return found

    def _first_reader(
        self, tensor: str, wanted: UseFilter, behind: dict[str, NodeProto], *, joins: bool
    ) -> NodeProto | None:
        """Return a direct reader before one behind a node that passes the values on.

        ``behind`` has the reader found behind the last output of each later node, by the node's first output.
        """
        last = None
        for use in self._index.readers(tensor):
            key = result(use.node)
            step = self._steps.get(key)
            if step is not None and _passes(use, step, tensor, joins=joins):
                last = behind.get(key, last)
            elif wanted(use):
                return use.node
        return last


def _passes(use: Use, step: Handover, tensor: str, *, joins: bool) -> bool:
    if not step.joins:
        return step.sources[0] == tensor
    # of what joins, either every input is joined or the first
    return joins and (use.position == 0 or len(step.sources) > 1)
