"""Is a Q/DQ graph legal for an engine, and which of its layers will run in integers there?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from gacq_deploy.errors import UsageError
from gacq_deploy.graph.files import read_graph
from gacq_deploy.lint.rules import RULE_SETS, RULES, SEVERITIES, Finding, LintRule, Outcome
from gacq_deploy.lint.view import FAR, NEAR, QuantView

__all__ = [
    "RULES", "RULE_SETS", "SEVERITIES",  "Finding", "Outcome", "Prediction", "compiled_name", "count_findings",
    "errors_in", "lint_file", "lint_graph", "predict_compilation", "predict_layers", "why_not_int8",
]  # fmt: skip


def lint_graph(model: onnx.ModelProto, *, target: str) -> list[Finding]:
    """Return what the rules find in ``model`` for one engine, errors first, else in the order of the table.

    Raises:
        UsageError: ``target`` is unknown.
    """
    if target not in RULE_SETS:
        raise UsageError(f"Lint target '{target}' is unknown.", f"Choose one of {', '.join(RULE_SETS)}.")
    view = _view(model, target)
    findings = [finding for _, finding in _found(view, target)]
    return sorted(findings, key=lambda f: SEVERITIES.index(f.severity))


def lint_file(path: Path, *, target: str) -> list[Finding]:
    """Return what the rules find in an ONNX file, whoever made it.

    Raises:
        ArtifactError: missing or not a whole ONNX file.
        UsageError: ``target`` is unknown.
    """
    return lint_graph(read_graph(path), target=target)


def count_findings(findings: Iterable[Finding]) -> dict[str, int]:
    """Return the number of findings by severity; every severity is there."""
    counts = Counter(f.severity for f in findings)
    return {severity: counts[severity] for severity in SEVERITIES}


def errors_in(findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings that an engine would choke on."""
    return [f for f in findings if f.severity == "error"]


@dataclass(frozen=True)
class Prediction:
    """What TensorRT will make of a graph.

    ``layers`` are the Conv, ConvTranspose, Gemm and MatMul nodes with a quantized weight or activation, by the
    name that the compiler reports. ``reasons`` has those that will not run in integers. ``end`` is what ends
    the build, if anything does: then every layer shares that outcome and that reason.
    """

    layers: dict[str, Outcome]
    reasons: dict[str, Finding]
    end: Finding | None
    outcome: Outcome
    """``int8`` where a plan comes out, else ``refused`` or ``crash``."""


def predict_compilation(model: onnx.ModelProto) -> Prediction:
    """Return what TensorRT's parser and compiler will make of ``model``, by the rules."""
    view = _view(model, "tensorrt")
    against = [(rule, f) for rule, f in _found(view, "tensorrt") if rule.compiled != "int8"]
    ends: dict[Outcome, Finding] = {r.compiled: f for r, f in reversed(against) if r.compiled != "float"}
    # the parser is asked first: what it refuses never comes to crash the builder
    endings: tuple[Outcome, ...] = ("refused", "crash")
    outcome: Outcome = next((o for o in endings if o in ends), "int8")
    own = {f.node: f for _, f in reversed(against)}
    names = {compiled_name(n): view.operand_nodes(n) for n in view.quantized_layers()}
    if outcome != "int8":
        end = ends[outcome]
        return Prediction(dict.fromkeys(names, outcome), dict.fromkeys(names, end), end, outcome)
    reasons: dict[str, Finding] = {}
    layers: dict[str, Outcome] = dict.fromkeys(names, "int8")
    for name, nodes in names.items():
        blamed = [node for node in nodes if node in own]
        if blamed:
            reasons[name] = own[blamed[0]]
            layers[name] = "float"
    return Prediction(layers, reasons, None, outcome)


def predict_layers(model: onnx.ModelProto) -> dict[str, Outcome]:
    """Return what TensorRT will make of each layer, by the name the compiler reports."""
    return predict_compilation(model).layers


def why_not_int8(model: onnx.ModelProto) -> dict[str, Finding]:
    """Return the finding that keeps a layer (by the name the compiler reports) from integer arithmetic.

    Layers (Conv, ConvTranspose, Gemm, MatMul) without a quantized weight or activation are not meant, and
    those that no rule speaks against are missing.
    """
    return predict_compilation(model).reasons


def compiled_name(node: onnx.NodeProto) -> str:
    """Return the name that TensorRT gives a node."""
    return node.name or f"node_of_{node.output[0]}"


def _view(model: onnx.ModelProto, target: str) -> QuantView:
    return QuantView(model, FAR if target == "tensorrt" else NEAR)


def _found(view: QuantView, target: str) -> Iterator[tuple[LintRule, Finding]]:
    for rule in RULES:
        severity = {str(known): s for known, s in rule.severity.items()}.get(target)
        if severity is None:
            continue
        for hit in rule.find(view):
            yield rule, Finding(rule.id, severity, hit.node, hit.detail, rule.effect, rule.remedy)
