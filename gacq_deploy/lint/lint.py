"""Is a Q/DQ graph legal for an engine, and which of its layers will run in integers there?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from gacq_deploy.errors import UsageError, printable
from gacq_deploy.graph.files import read_graph
from gacq_deploy.graph.index import GraphIndex
from gacq_deploy.graph.wellformed import require_wellformed
from gacq_deploy.lint.rules import RULE_SETS, RULES, SEVERITIES, Finding, LintRule, Outcome
from gacq_deploy.lint.view import FAR, NEAR, QuantView

__all__ = [
    "RULES", "RULE_SETS", "SEVERITIES",  "Finding", "Outcome", "Prediction", "compiled_name", "count_findings",
    "errors_in", "lint_file", "lint_graph", "look_at", "predict_compilation",
    "predict_layers", "prediction_of", "why_not_int8",
]  # fmt: skip


_IN_MEMORY = "ONNX model in memory"
_LONGEST_DETAIL = 2000
"""Characters of what a finding says: names may be of any length, and many findings may hold the same one."""


def lint_graph(model: onnx.ModelProto, *, target: str) -> list[Finding]:
    """Return what the rules find in ``model`` for one engine, errors first, else in the order of the table.

    Raises:
        ArtifactError: the graph is malformed.
        UsageError: ``target`` is unknown.
        ResourceError: the graph is too large to look through.
    """
    _require_target(target)
    return look_at(require_wellformed(model, _IN_MEMORY), target=target).findings


def lint_file(path: Path, *, target: str) -> list[Finding]:
    """Return what the rules find in an ONNX file, whoever made it.

    Raises:
        ArtifactError: missing, not a whole ONNX file, or the graph is malformed.
        UsageError: ``target`` is unknown.
        ResourceError: the graph is too large to look through.
    """
    _require_target(target)
    return look_at(require_wellformed(read_graph(path), f"ONNX file {path}"), target=target).findings


@dataclass(frozen=True)
class Look:
    """What the rules of one engine find in a graph that is well formed: ``hits`` in the order of the table."""

    view: QuantView
    hits: tuple[tuple[LintRule, Finding], ...]

    @property
    def findings(self) -> list[Finding]:
        """The findings, errors first."""
        return sorted((finding for _, finding in self.hits), key=lambda f: SEVERITIES.index(f.severity))


def look_at(index: GraphIndex, *, target: str) -> Look:
    """Ask the rules of an engine once, for all that is to be told of the graph."""
    view = QuantView(index, FAR if target == "tensorrt" else NEAR)
    return Look(view, tuple(_found(view, target)))


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
    """Return what TensorRT's parser and compiler will make of ``model``, by the rules.

    Raises:
        ArtifactError: the graph is malformed.
        ResourceError: the graph is too large to look through.
    """
    return prediction_of(look_at(require_wellformed(model, _IN_MEMORY), target="tensorrt"))


def prediction_of(look: Look) -> Prediction:
    """Return the same of what TensorRT's rules have found."""
    view, against = look.view, [(rule, f) for rule, f in look.hits if rule.compiled != "int8"]
    ends: dict[Outcome, Finding] = {r.compiled: f for r, f in reversed(against) if r.compiled != "float"}
    # the parser is asked first: what it refuses never comes to crash the builder
    endings: tuple[Outcome, ...] = ("refused", "crash")
    outcome: Outcome = next((o for o in endings if o in ends), "int8")
    own = {f.node: f for _, f in reversed(against)}
    names = {compiled_name(n): n for n in view.quantized_layers()}
    if outcome != "int8":
        end = ends[outcome]
        return Prediction(dict.fromkeys(names, outcome), dict.fromkeys(names, end), end, outcome)
    reasons: dict[str, Finding] = {}
    layers: dict[str, Outcome] = dict.fromkeys(names, "int8")
    for name, node in names.items():
        blamed = view.first_named(node, own)
        if blamed is not None:
            reasons[name] = own[blamed]
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


def _require_target(target: str) -> None:
    if target not in RULE_SETS:
        raise UsageError(f"Lint target '{target}' is unknown.", f"Choose one of {', '.join(RULE_SETS)}.")


def _found(view: QuantView, target: str) -> Iterator[tuple[LintRule, Finding]]:
    for rule in RULES:
        severity = {str(known): s for known, s in rule.severity.items()}.get(target)
        if severity is None:
            continue
        for hit in rule.find(view):
            detail = printable(hit.detail)
            if len(detail) > _LONGEST_DETAIL:
                detail = f"{detail[:_LONGEST_DETAIL]} ..."
            yield rule, Finding(rule.id, severity, hit.node, detail, rule.effect, rule.remedy)
