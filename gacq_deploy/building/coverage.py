"""Did every planned layer compile to INT8, and if not, why? The gate of a build."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from onnx import ModelProto, NodeProto

from gacq_deploy.building.layers import CompiledLayer, int8_nodes
from gacq_deploy.errors import GateError
from gacq_deploy.export.graph import module_of
from gacq_deploy.export.layers import QUANTIZABLE
from gacq_deploy.export.lint import Finding, why_not_int8
from gacq_deploy.export.lint_view import FAR, QuantView

_SHOWN = 10
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
class Coverage:
    """Every planned node, in graph order, and how many kernels of each kind the engine has."""

    nodes: tuple[NodeCoverage, ...]
    kernels: Mapping[str, int]

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
        """Share that does, 0 to 1; 0 for a graph in which nothing was planned."""
        return self.int8 / self.planned if self.planned else 0.0

    @property
    def lost(self) -> tuple[NodeCoverage, ...]:
        """Nodes that fell back."""
        return tuple(node for node in self.nodes if not node.int8)

    def document(self) -> dict[str, Any]:
        """Return plain JSON data: the counts, and the nodes that fell back."""
        return {
            "planned": self.planned,
            "int8": self.int8,
            "share": round(self.share, 4),
            "kernels": dict(self.kernels),
            "lost": [asdict(node) for node in self.lost],
        }


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
    nodes = []
    for node in view.index.of_type(*QUANTIZABLE):
        module = module_of(node) or ""
        planned = module in modules if modules is not None else _is_quantized(view, node)
        if not planned or not view.stored_weight(node):
            continue
        layer = products.get(node.name) or kernels.get(node.name)
        int8 = node.name in quantized
        rule, why = ("", "") if int8 else _reason(node, reasons.get(node.name), targets)
        nodes.append(NodeCoverage(node.name, node.op_type, module, int8, _kernel(layer), rule, why))
    return Coverage(tuple(nodes), _count(compiled))


def check_coverage(coverage: Mapping[str, Any], least: float) -> None:
    """Refuse an engine in which too few planned nodes are INT8.

    Args:
        coverage: from :meth:`Coverage.document`.
        least: share, 0 to 1.

    Raises:
        GateError: lists the nodes that fell back and the rule that explains each.
    """
    if coverage["share"] >= least:
        return
    lost = [NodeCoverage(**node) for node in coverage["lost"]]
    listed = "\n".join(f"  {node}" for node in lost[:_SHOWN])
    more = f"\n  ... and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else ""
    raise GateError(
        f"{coverage['int8']} of {coverage['planned']} planned layers compiled to INT8 ({coverage['share']:.1%}); "
        f"{least:.1%} are required. Not INT8:\n{listed}{more}",
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
