"""Would this graph build and run on a target, and how sure is that? Asked without the GPU it is meant for.

Four verdicts. Blocked: a rule says that the target would refuse the graph or compute it wrongly, or the target's own
parser or compiler refused it here. Unverified: it holds something that neither a rule nor a measurement covers.
Likely: no rule speaks against it and every operator was seen to compile, but not this graph. Verified: it was
compiled (ONNX Runtime: loaded and run) here, with integer layers as predicted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from onnx import GraphProto, NodeProto

from gacq_deploy.check.evidence import (
    WEIGHTS,
    CheckRequest,
    GraphInputs,
    Reason,
    Weight,
    ask_onnxruntime,
    ask_tensorrt,
)
from gacq_deploy.check.targets import FACTS, Target, TargetFacts
from gacq_deploy.errors import printable
from gacq_deploy.graph.files import read_graph
from gacq_deploy.graph.index import DEQUANTIZE, QUANTIZE, STANDARD_DOMAINS, GraphIndex, opset_of
from gacq_deploy.graph.nodes import name_of, subgraphs
from gacq_deploy.graph.wellformed import require_wellformed
from gacq_deploy.lint.lint import Finding, Outcome, look_at, prediction_of
from gacq_deploy.lint.view import LAYERS, QuantView

__all__ = ["CheckRequest", "CheckVerdict", "Layers", "Preflight", "Reason", "check_file"]

CheckVerdict = Literal["blocked", "unverified", "likely", "verified"]
_UNMEASURED = ("Einsum", "LSTM", "GRU", "RNN", "Attention")
"""Operators that compute on quantized operands in ways nobody measured."""


@dataclass(frozen=True)
class Layers:
    """Conv, Gemm and MatMul nodes with Q/DQ: how many there are, are predicted to run and do run in integers.

    None: not predicted (ONNX Runtime), or not compiled.
    """

    quantized: int
    predicted: int | None = None
    measured: int | None = None


@dataclass(frozen=True)
class Preflight:
    """The verdict, why, and what was asked to find it."""

    file: str
    target: Target
    verdict: CheckVerdict
    layers: Layers
    examined: tuple[str, ...]
    reasons: tuple[Reason, ...]


def check_file(path: Path, target: Target, request: CheckRequest | None = None) -> Preflight:
    """Check an ONNX file, whoever made it, for one target.

    Raises:
        ArtifactError: missing, not a whole ONNX file, or the graph is malformed.
        UsageError: a shape is missing, or does not fit the input.
        BackendUnavailable: compiling was asked for, and the target's library is not installed.
        ResourceError: out of time or memory, or the graph is too large to look through.
    """
    request = request or CheckRequest()
    facts = FACTS[target]
    ruled = _ask_rules(path, facts)
    if ruled.predicted is None:
        predicted = None
        examination = ask_onnxruntime(path, ruled.inputs, request)
    else:
        predicted = sum(outcome == "int8" for outcome in ruled.predicted.values())
        examination = ask_tensorrt(path, ruled.inputs, ruled.predicted, facts, request)
    reasons = [*ruled.reasons, *examination.reasons]
    return Preflight(
        file=str(path),
        target=target,
        verdict=_verdict(reasons, proven=examination.proven),
        layers=Layers(ruled.quantized, predicted, examination.measured),
        examined=("rules", f"operators and opset {ruled.opset}", *examination.examined),
        reasons=tuple(sorted(reasons, key=lambda r: WEIGHTS.index(r.weight))),
    )


@dataclass(frozen=True)
class _Ruled:
    """What is known of a graph without its target's library. It does not hold the graph, which may be large."""

    opset: int
    inputs: GraphInputs
    quantized: int
    predicted: Mapping[str, Outcome] | None
    """Layer -> outcome; None: not predicted."""
    reasons: tuple[Reason, ...]


def _ask_rules(path: Path, facts: TargetFacts) -> _Ruled:
    index = require_wellformed(read_graph(path), f"ONNX file {path}")
    look = look_at(index, target=facts.rules)
    reasons = list(_from_rules(look.findings))
    reasons += _open_questions(index, facts, {r.node for r in reasons if r.weight == "blocked"})
    predicted = None if facts.library is None else prediction_of(look).layers
    quantized = len(list(look.view.quantized_layers()) if predicted is None else predicted)
    return _Ruled(opset_of(index.model), GraphInputs.of(index.model), quantized, predicted, tuple(reasons))


def _verdict(reasons: list[Reason], *, proven: bool) -> CheckVerdict:
    weights = {reason.weight for reason in reasons}
    if "blocked" in weights:
        return "blocked"
    if proven:
        return "verified"
    return "unverified" if "unverified" in weights else "likely"


def _from_rules(findings: list[Finding]) -> Iterator[Reason]:
    for f in findings:
        weight: Weight = "blocked" if f.severity == "error" else "note"
        yield Reason(weight, f.rule, f.node, f"{f.detail}. {f.effect}", f.remedy)


def _open_questions(index: GraphIndex, facts: TargetFacts, blocked: Collection[str]) -> Iterator[Reason]:
    """Yield what no rule sees: other operators and operator sets, hidden graphs, unusual quantized operators.

    Nodes that a rule has ``blocked`` need no second reason.
    """
    model = index.model
    opset = opset_of(model)
    if opset not in facts.opsets:
        known = f"{facts.opsets.start} to {facts.opsets.stop - 1}"
        yield Reason(
            "unverified", "opset", "(graph)", f"Opset {opset}; known are {known}.", "Export at opset 20."
        )
    # only what asks of quantized operands needs it
    view = QuantView(index) if any(index.of_type(*_UNMEASURED)) else None
    for node in index.nodes:
        if name_of(node) not in blocked:
            yield from _about_operator(node, view, facts)
        if any(map(_quantized, subgraphs(node))):
            detail = "No rule looks at the quantizers or layers inside."
            yield Reason(
                "unverified", "subgraph", name_of(node), detail, "Inline it, or compile it (--compile)."
            )
    for function in model.functions:
        detail = "No rule looks inside a function of the file."
        yield Reason(
            "unverified", "function", function.name, detail, "Inline it, or compile the graph (--compile)."
        )


def _about_operator(node: NodeProto, view: QuantView | None, facts: TargetFacts) -> Iterator[Reason]:
    where, operator = name_of(node), printable(f"{node.domain}.{node.op_type}".lstrip("."))
    if node.op_type in facts.refused:
        yield Reason("blocked", "operator", where, f"The parser does not know {operator}.", "Replace it.")
    elif facts.compiled is not None and (
        node.domain not in STANDARD_DOMAINS or node.op_type not in facts.compiled
    ):
        detail = f"{operator} was not seen to compile."
        yield Reason("unverified", "operator", where, detail, "Compile the graph (--compile).")
    elif (
        view is not None
        and node.op_type in _UNMEASURED
        and any(view.is_quantized(name) for name in node.input if name)
    ):
        detail = f"Quantized operands of {operator} were not measured."
        yield Reason("unverified", "quantized-operator", where, detail, "Compile the graph (--compile).")


def _quantized(graph: GraphProto) -> bool:
    pending = [graph]
    while pending:
        for node in pending.pop().node:
            if node.op_type in (QUANTIZE, DEQUANTIZE, *LAYERS):
                return True
            pending += subgraphs(node)
    return False
