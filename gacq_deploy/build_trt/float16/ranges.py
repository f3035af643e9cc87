"""How near do activations come to the largest half, and what does the half graph keep in float32?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict

import numpy as np
from onnx import ModelProto, NodeProto, helper
from pydantic import BaseModel, ConfigDict

from gacq_deploy.backends.base import Engine, Feeds
from gacq_deploy.build_trt.float16.convert import HalfGraph
from gacq_deploy.build_trt.float16.float32_nodes import LARGEST_HALF
from gacq_deploy.build_trt.float16.types import FLOAT, NodeTypes
from gacq_deploy.graph.index import (
    DEQUANTIZE,
    QUANTIZE,
    GraphIndex,
    module_of,
    replace_nodes,
    without_initializers,
)

_WORST = 10
_EXTREMES = {".max": "ReduceMax", ".min": "ReduceMin"}
_NOT_MEASURED = (QUANTIZE, DEQUANTIZE, "Constant")
"""Quantizers stay float32 whatever their range, and a constant's values are read from the graph itself."""


class Headroom(BaseModel):
    """Largest finite |x| of one tensor, and how many times it fits into half; the node that computes it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tensor: str
    node: str
    module: str | None
    max_abs: float
    headroom: float


class Float32NodeRecord(BaseModel):
    """A node that computes in float32, and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    node: str
    module: str | None
    why: str
    detail: str


class RangeReport(BaseModel):
    """What half precision does to a graph's numbers.

    ``max_abs`` is the largest |x| by tensor of the float32 graph; ``worst`` the tensors with the least headroom
    among those that become half, least first; ``not_finite`` the tensors that held NaN or Inf in float32 already;
    ``flushed`` counts by weight the values that are zero only in half.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    largest_half: float = LARGEST_HALF
    max_abs: dict[str, float]
    worst: tuple[Headroom, ...]
    not_finite: tuple[str, ...]
    float32_nodes: tuple[Float32NodeRecord, ...]
    flushed: dict[str, int]

    def to_text(self) -> str:
        """Return one line."""
        reasons = [i.why for i in self.float32_nodes]
        counts = ", ".join(f"{why} {reasons.count(why)}" for why in dict.fromkeys(reasons))
        kept = f"{len(reasons)} nodes stay float32 ({counts})" if reasons else "all nodes in half"
        if not self.worst:
            return f"{kept}; ranges not measured"
        near = self.worst[0]
        return f"{kept}; least headroom {near.headroom:.3g}x at {near.node} (|x| <= {near.max_abs:.4g})"


def with_extremes(model: ModelProto) -> ModelProto:
    """Return a float32 graph whose outputs are the largest and smallest value of every float tensor.

    The reductions are part of the graph, so an engine still frees each activation after its last reader.

    Args:
        model: its weights loaded or not; in the latter case the result belongs into the same folder.

    Raises:
        ExportError: a tensor's type cannot be inferred, or tensors are half already.
    """
    types, index = NodeTypes(model), GraphIndex(model)
    result = without_initializers(model)
    graph = result.graph
    graph.initializer.extend(model.graph.initializer)
    del graph.output[:]
    ordered: list[NodeProto] = []

    def measure(tensors: Iterable[str]) -> None:
        for tensor in tensors:
            if types.of.get(tensor) != FLOAT or index.is_widened(tensor):
                continue
            for suffix, operator in _EXTREMES.items():
                name = f"{tensor}{suffix}"
                node = helper.make_node(operator, [tensor], [name], name=f"{tensor}/{operator}", keepdims=0)
                ordered.append(node)
                graph.output.append(helper.make_tensor_value_info(name, FLOAT, []))

    measure(index.inputs)
    for node in index.nodes:
        ordered.append(node)
        # right behind it: what runs the graph in pieces keeps a tensor until its last reader ran
        measure(node.output if node.op_type not in _NOT_MEASURED else ())
    replace_nodes(result, ordered)
    return result


def measure_ranges(engine: Engine, inputs: Feeds, *, batch: int) -> dict[str, float]:
    """Return the largest |x| by tensor over all rows of ``inputs``; Inf or NaN where a tensor was not finite.

    Args:
        engine: opened on a graph that :func:`with_extremes` returned.
        inputs: name -> ``[M, ...]``.
        batch: rows run together.

    Raises:
        EngineError, ResourceError: as for running the engine.
    """
    rows = len(next(iter(inputs.values())))
    found: dict[str, float] = {}
    for start in range(0, rows, batch):
        for name, value in engine.run({k: v[start : start + batch] for k, v in inputs.items()}).items():
            tensor = name.rpartition(".")[0]
            # numpy's maximum keeps NaN, Python's loses it
            found[tensor] = float(np.maximum(found.get(tensor, 0.0), np.abs(value)))
    return found


def range_report(half: HalfGraph, ranges: Mapping[str, float]) -> RangeReport:
    """Return what becomes of a graph's numbers in half.

    Args:
        half: the converted graph.
        ranges: of its float32 form, as :func:`measure_ranges` returns them; may be empty.
    """
    index = GraphIndex(half.model)
    kept = {i.node for i in half.float32_nodes}
    found = []
    for tensor, value in ranges.items():
        node = index.producer(tensor)
        if node is not None and node.name not in kept and math.isfinite(value) and value > 0:
            found.append(
                Headroom(
                    tensor=tensor,
                    node=node.name,
                    module=module_of(node),
                    max_abs=value,
                    headroom=LARGEST_HALF / value,
                )
            )
    found.sort(key=lambda h: h.headroom)
    finite = {tensor: value for tensor, value in ranges.items() if math.isfinite(value)}
    not_finite = tuple(tensor for tensor in ranges if tensor not in finite)
    records = tuple(Float32NodeRecord(**asdict(node)) for node in half.float32_nodes)
    return RangeReport(
        max_abs=finite,
        worst=tuple(found[:_WORST]),
        not_finite=not_finite,
        float32_nodes=records,
        flushed=dict(half.flushed),
    )
