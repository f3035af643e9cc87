"""Did every planned layer compile to INT8, and if not, why? The gate of a build.

Layers whose weights alone are quantized, to INT4, compute in float: they are counted apart, by whether their codes are
in the engine as INT4.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from onnx import ModelProto, NodeProto, TensorProto
from pydantic import Field

from gacq_deploy.build_trt.layers import CompiledLayer, int8_nodes
from gacq_deploy.errors import GateError
from gacq_deploy.export.layers import QUANTIZABLE_OPERATORS
from gacq_deploy.graph.index import module_of
from gacq_deploy.lint.lint import Finding, why_not_int8
from gacq_deploy.lint.view import FAR, QuantView
from gacq_deploy.storage.records import Record

_SHOWN = 10
"""Nodes that an error names; layers.json lists all."""
_TURING = "7.5"
_NO_TURING_CONVOLUTION = (
    "TensorRT-RTX has no INT8 convolution for compute capability 7.5. Use TensorRT there, or leave 7.5 out."
)
"""Found by compiling convolutions of 16 to 320 channels for it; matrix products do run in INT8."""


@dataclass(frozen=True)
class NodeCoverage:
    """One Conv, Gemm or MatMul that was meant to run in INT8, and what the compiler made of it."""

    node: str
    operator: str
    module: str
    int8: bool
    kernel: str
    """Layer type and data types of the kernel it ended in."""
    rule: str = ""
    why: str = ""
    """Which rule explains a fallback, and its effect and remedy; empty for INT8."""

    def __str__(self) -> str:
        return f"{self.node} ({self.operator} of {self.module or 'no module'}): {self.kernel}; {self.rule}: {self.why}"


@dataclass(frozen=True)
class WeightCoverage:
    """One Gemm or MatMul whose weight was meant to stay INT4, and what the compiler made of it."""

    node: str
    operator: str
    module: str
    int4: bool
    """The engine holds the codes as INT4."""
    in_product: bool
    """They are dequantized inside the product, not written out in float before it."""
    kernel: str
    rule: str = ""
    why: str = ""

    def __str__(self) -> str:
        return f"{self.node} ({self.operator} of {self.module or 'no module'}): {self.kernel}; {self.rule}: {self.why}"


@dataclass(frozen=True)
class Coverage:
    """Every planned node, in graph order, and how many kernels of each kind the engine has.

    ``weight_only`` are the nodes with INT4 weights; they are none of ``nodes``.
    """

    nodes: tuple[NodeCoverage, ...]
    kernels: Mapping[str, int]
    weight_only: tuple[WeightCoverage, ...] = ()

    @property
    def planned(self) -> int:
        """Nodes that were meant to run in INT8."""
        return len(self.nodes)

    @property
    def int8(self) -> int:
        """Nodes that do."""
        return sum(node.int8 for node in self.nodes)

    @property
    def share(self) -> float:
        """Share that does, 0 to 1; where no node was planned 1 beside INT4 weights, else 0."""
        return self.int8 / self.planned if self.planned else float(bool(self.weight_only))

    @property
    def lost(self) -> tuple[NodeCoverage, ...]:
        """Nodes that fell back."""
        return tuple(node for node in self.nodes if not node.int8)

    def listed(self) -> list[dict[str, Any]]:
        """Return every planned node as plain JSON data, those with INT4 weights last."""
        return [*map(asdict, self.nodes), *map(asdict, self.weight_only)]

    def document(self) -> dict[str, Any]:
        """Return plain JSON data: the counts, and the nodes that fell back; INT4 weights only where there are any."""
        plain: dict[str, Any] = {
            "planned": self.planned,
            "int8": self.int8,
            "share": round(self.share, 4),
            "kernels": dict(self.kernels),
            "lost": [asdict(node) for node in self.lost],
        }
        if self.weight_only:
            kept = [node for node in self.weight_only if node.int4]
            lost = [asdict(node) for node in self.weight_only if not node.int4]
            plain["weight_only"] = {
                "planned": len(self.weight_only),
                "int4": len(kept),
                "in_product": sum(node.in_product for node in kept),
                "lost": lost,
            }
        return plain


class _Lost(Record):
    node: str
    operator: str
    module: str
    kernel: str
    rule: str
    why: str


class _LostNode(_Lost):
    int8: bool


class _LostWeight(_Lost):
    int4: bool
    in_product: bool


class _WeightsRecord(Record):
    planned: int = Field(ge=1)
    int4: int = Field(ge=0)
    in_product: int = Field(ge=0)
    lost: tuple[_LostWeight, ...]


class CoverageRecord(Record):
    """The shape of :meth:`Coverage.document`."""

    planned: int = Field(ge=0)
    int8: int = Field(ge=0)
    share: float = Field(ge=0, le=1)
    kernels: dict[str, int]
    lost: tuple[_LostNode, ...]
    weight_only: _WeightsRecord | None = None


def measure_coverage(
    model: ModelProto,
    layers: Iterable[CompiledLayer],
    modules: Collection[str] | None = None,
    targets: Collection[str] = (),
) -> Coverage:
    """Hold the compiled layers against the plan.

    Args:
        model: the Q/DQ graph that was compiled.
        layers: what the compiler made of it.
        modules: planned modules; None takes every layer whose weight or input is quantized, whoever made the graph.
        targets: compute capabilities that it was compiled for with TensorRT-RTX.
    """
    compiled = tuple(layers)
    quantized = int8_nodes(compiled)
    kernels = {node: layer for layer in compiled for node in layer.nodes}
    products = {node: layer for layer in compiled if layer.is_product for node in layer.nodes}
    reasons = why_not_int8(model)
    view = QuantView(model, FAR)
    nodes, weight_only = [], []
    for node in view.index.of_type(*QUANTIZABLE_OPERATORS):
        module = module_of(node) or ""
        planned = module in modules if modules is not None else _is_quantized(view, node)
        if not planned or not view.stored_weight(node):
            continue
        if _is_int4_weight_only(view, node):
            weight_only.append(_weight_coverage(view, node, compiled))
            continue
        layer = products.get(node.name) or kernels.get(node.name)
        int8 = node.name in quantized
        rule, why = ("", "") if int8 else _reason(node, reasons.get(node.name), targets)
        nodes.append(NodeCoverage(node.name, node.op_type, module, int8, _kernel(layer), rule, why))
    return Coverage(tuple(nodes), _count(compiled), tuple(weight_only))


def holds(coverage: Mapping[str, Any], least: float) -> bool:
    """Tell whether enough of the planned nodes are INT8, and enough of the INT4 weights INT4.

    Args:
        coverage: from :meth:`Coverage.document`.
        least: share, 0 to 1, of either.
    """
    weights = coverage.get("weight_only")
    return coverage["share"] >= least and (weights is None or weights["int4"] >= least * weights["planned"])


def check_coverage(coverage: Mapping[str, Any], least: float) -> None:
    """Refuse an engine in which too few planned nodes are INT8, or too few INT4 weights still INT4.

    Args:
        coverage: from :meth:`Coverage.document`.
        least: share, 0 to 1.

    Raises:
        GateError: lists the nodes that fell back and the rule that explains each.
    """
    if holds(coverage, least):
        return
    lost: list[NodeCoverage | WeightCoverage]
    if coverage["share"] >= least:
        weights = coverage["weight_only"]
        lost = [WeightCoverage(**node) for node in weights["lost"]]
        said = f"{weights['int4']} of {weights['planned']} planned weights are INT4 in the engine"
        share, kind = weights["int4"] / weights["planned"], "INT4"
    else:
        lost = [NodeCoverage(**node) for node in coverage["lost"]]
        said = f"{coverage['int8']} of {coverage['planned']} planned layers compiled to INT8"
        share, kind = coverage["share"], "INT8"
    listed = "\n".join(f"  {node}" for node in lost[:_SHOWN])
    more = f"\n  ... and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else ""
    raise GateError(
        f"{said} ({share:.1%}); {least:.1%} are required. Not {kind}:\n{listed}{more}",
        "Mend what the rules name, leave these layers float in the recipe, or accept it: build-trt with a lower "
        "--min-int8-coverage.",
    )


def _reason(node: NodeProto, finding: Finding | None, targets: Collection[str]) -> tuple[str, str]:
    if finding is not None:
        return finding.rule, f"{finding.effect} {finding.remedy}"
    if node.op_type == "Conv" and _TURING in targets:
        return "target", _NO_TURING_CONVOLUTION
    return "unexplained", "No lint rule explains it."


def _is_quantized(view: QuantView, node: NodeProto) -> bool:
    return view.weight(node) is not None or view.is_quantized(node.input[0])


def _is_int4_weight_only(view: QuantView, node: NodeProto) -> bool:
    item = view.weight(node)
    return item is not None and item.code_type == TensorProto.INT4 and not view.is_quantized(node.input[0])


def _weight_coverage(view: QuantView, node: NodeProto, compiled: Sequence[CompiledLayer]) -> WeightCoverage:
    item = view.weight(node)
    assert item is not None, f"{node.name} has no quantized weight"
    names = {item.node.name, node.name}
    around = [layer for layer in compiled if names.intersection(layer.nodes)]
    holding = next((layer for layer in around if "Int4" in layer.constants), None)
    why = (
        ""
        if holding
        else "The compiler took its codes for something else, or folded them; no lint rule explains it."
    )
    return WeightCoverage(
        node=node.name,
        operator=node.op_type,
        module=module_of(node) or "",
        int4=holding is not None,
        in_product=holding is not None and names <= set(holding.nodes),
        kernel=_kernel(holding or next(iter(around), None)),
        rule="" if holding else "unexplained",
        why=why,
    )


def _kernel(layer: CompiledLayer | None) -> str:
    if layer is None:
        return "in no kernel the compiler lists"
    types = " x ".join(layer.inputs + layer.constants[:1])
    return f"{layer.kind} {types}".strip()


def _count(layers: Iterable[CompiledLayer]) -> dict[str, int]:
    counts = {"int8": 0, "int8_attention": 0, "float_product": 0, "reformat": 0, "other": 0}
    for layer in layers:
        if layer.int8:
            counts["int8"] += 1
        elif layer.int8_product:
            counts["int8_attention"] += 1
        elif layer.is_product:
            counts["float_product"] += 1
        elif layer.reformat:
            counts["reformat"] += 1
        else:
            counts["other"] += 1
    return counts
