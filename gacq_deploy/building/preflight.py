"""Would this graph build and run on a target, and how sure is that? Asked without the GPU it is meant for.

Four answers. Blocked: a rule says that the target would refuse the graph or compute it wrongly, or the target's own
parser or compiler refused it here. Unverified: it holds something that neither a rule nor a measurement covers.
Likely: no rule speaks against it and every operator was seen to compile, but not this graph. Verified: it was
compiled (ONNX Runtime: loaded and run) here, with integer layers as predicted.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto

from gacq_deploy.backends import open_engine
from gacq_deploy.backends.base import Feeds, TensorInfo
from gacq_deploy.backends.kernels import executed_kernels
from gacq_deploy.building.compiler import Limits, compile_graph, parse_graph
from gacq_deploy.building.layers import CompiledLayer, int8_nodes
from gacq_deploy.building.options import CompileOptions, Shape, ShapeRange
from gacq_deploy.building.profiles import BATCH, ShapeRequest, derive_profiles, input_dims
from gacq_deploy.building.target_facts import FACTS, Target, TargetFacts
from gacq_deploy.errors import ArtifactError, BackendUnavailable, EngineError
from gacq_deploy.export.graph import DEQUANTIZE, QUANTIZE, opset_of
from gacq_deploy.export.graph_file import read_graph
from gacq_deploy.export.lint import Finding, Outcome, lint_graph, predict
from gacq_deploy.export.lint_view import LAYERS, QuantView, name_of

Verdict = Literal["blocked", "unverified", "likely", "verified"]
Weight = Literal["blocked", "unverified", "note"]
WEIGHTS: tuple[Weight, ...] = ("blocked", "unverified", "note")
_UNMEASURED = ("Einsum", "LSTM", "GRU", "RNN", "Attention")
"""Operators that compute on quantized operands in ways nobody measured."""
_STANDARD = ("", "ai.onnx")


@dataclass(frozen=True)
class Reason:
    """What speaks against a graph, or is worth knowing, at one node; ``rule`` is the lint's or one of this file."""

    weight: Weight
    rule: str
    node: str
    detail: str
    remedy: str


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
    """The answer, why, and what was asked to find it."""

    file: str
    target: Target
    verdict: Verdict
    layers: Layers
    examined: tuple[str, ...]
    reasons: tuple[Reason, ...]


@dataclass(frozen=True)
class CheckRequest:
    """How far to go. ``compile``: compile (ONNX Runtime: run) the graph; ``shapes``: of inputs with open dimensions."""

    compile: bool = False
    shapes: Mapping[str, Shape] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)


@dataclass
class _Answer:
    """What the target's own library said."""

    reasons: list[Reason] = field(default_factory=list)
    examined: list[str] = field(default_factory=list)
    measured: int | None = None
    proven: bool = False


def check_file(path: Path, target: Target, request: CheckRequest | None = None) -> Preflight:
    """Check an ONNX file, whoever made it, for one target.

    Raises:
        ArtifactError: missing, or not a whole ONNX file.
        UsageError: a shape is missing, or does not fit the input.
        BackendUnavailable: compiling was asked for, and the target's library is not installed.
        ResourceError: out of time or memory.
    """
    request = request or CheckRequest()
    facts = FACTS[target]
    model = read_graph(path)
    reasons = list(_from_rules(lint_graph(model, target=facts.rules)))
    reasons += _open_questions(model, facts, {r.node for r in reasons if r.weight == "blocked"})
    examined = ["rules", f"operators and opset {opset_of(model)}"]
    if facts.library is None:
        predicted = None
        answer = _ask_onnxruntime(path, model, request)
        quantized = len(list(QuantView(model).quantized_layers()))
    else:
        layers = predict(model).layers
        quantized, predicted = len(layers), sum(outcome == "int8" for outcome in layers.values())
        answer = _ask_tensorrt(path, model, layers, facts, request)
    reasons += answer.reasons
    return Preflight(
        file=str(path),
        target=target,
        verdict=_verdict(reasons, proven=answer.proven),
        layers=Layers(quantized, predicted, answer.measured),
        examined=(*examined, *answer.examined),
        reasons=tuple(sorted(reasons, key=lambda r: WEIGHTS.index(r.weight))),
    )


def _verdict(reasons: list[Reason], *, proven: bool) -> Verdict:
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


def _open_questions(model: ModelProto, facts: TargetFacts, blocked: Collection[str]) -> Iterator[Reason]:
    """Yield what no rule sees: other operators and operator sets, hidden graphs, unusual quantized operators.

    Nodes that a rule has ``blocked`` need no second reason.
    """
    opset = opset_of(model)
    if opset not in facts.opsets:
        known = f"{facts.opsets.start} to {facts.opsets.stop - 1}"
        yield Reason(
            "unverified", "opset", "(graph)", f"Opset {opset}; known are {known}.", "Export at opset 20."
        )
    view = QuantView(model)
    for node in view.index.nodes:
        if name_of(node) not in blocked:
            yield from _about_operator(node, view, facts)
        if any(_quantized(graph) for graph in _subgraphs(node.attribute)):
            detail = "No rule looks at the quantizers or layers inside."
            yield Reason(
                "unverified", "subgraph", name_of(node), detail, "Inline it, or compile it (--compile)."
            )
    for function in model.functions:
        detail = "No rule looks inside a function of the file."
        yield Reason(
            "unverified", "function", function.name, detail, "Inline it, or compile the graph (--compile)."
        )


def _about_operator(node: NodeProto, view: QuantView, facts: TargetFacts) -> Iterator[Reason]:
    where, operator = name_of(node), f"{node.domain}.{node.op_type}".lstrip(".")
    if node.op_type in facts.refused:
        yield Reason("blocked", "operator", where, f"The parser does not know {operator}.", "Replace it.")
    elif facts.compiled is not None and (node.domain not in _STANDARD or node.op_type not in facts.compiled):
        detail = f"{operator} was not seen to compile."
        yield Reason("unverified", "operator", where, detail, "Compile the graph (--compile).")
    elif node.op_type in _UNMEASURED and any(view.is_quantized(name) for name in node.input if name):
        detail = f"Quantized operands of {operator} were not measured."
        yield Reason("unverified", "quantized-operator", where, detail, "Compile the graph (--compile).")


def _subgraphs(attributes: Iterable[AttributeProto]) -> Iterator[GraphProto]:
    for attribute in attributes:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _quantized(graph: GraphProto) -> bool:
    return any(
        node.op_type in (QUANTIZE, DEQUANTIZE, *LAYERS)
        or any(_quantized(g) for g in _subgraphs(node.attribute))
        for node in graph.node
    )


def _ask_tensorrt(path: Path, model: ModelProto, facts: TargetFacts, request: CheckRequest) -> _Answer:
    """Let the target's library parse the graph, and compile it if asked; without the library say nothing."""
    assert facts.library is not None, "the target has a library"
    answer = _Answer()
    with tempfile.TemporaryDirectory(prefix="check-") as folder:
        try:
            version = parse_graph(path, facts.library, folder=Path(folder), limits=request.limits)
        except BackendUnavailable:
            if request.compile:
                raise
            return answer
        except EngineError as error:
            answer.reasons.append(_refusal("parser", error))
            answer.examined.append(f"parser of {facts.library}")
            return answer
        if facts.major is not None and version.split(".")[0] != str(facts.major):
            if request.compile:
                wanted = f"{facts.library} {facts.major}"
                raise BackendUnavailable(
                    f"{facts.library} {version} is installed, not {wanted}.", f"Install {wanted}."
                )
            return answer
        answer.examined.append(f"parser of {facts.library} {version}")
        if request.compile:
            _compile(path, model, facts, request, Path(folder), answer)
    return answer


def _compile(
    path: Path, model: ModelProto, facts: TargetFacts, request: CheckRequest, folder: Path, answer: _Answer
) -> None:
    assert facts.library is not None, "the target has a library"
    options = CompileOptions(backend=facts.library, profiles=_profiles(model, request.shapes))
    try:
        built = compile_graph(path, options, folder=folder, limits=request.limits)
    except EngineError as error:
        answer.reasons.append(_refusal("compiler", error))
        return
    answer.examined.append(f"compiler of {facts.library} {built.version}")
    expected = predict(model).layers
    surprises = tuple(surprising_layers(expected, built.layers))
    answer.reasons += surprises
    answer.measured = len(expected.keys() & _integer_nodes(built.layers))
    answer.proven = not any(reason.weight == "unverified" for reason in surprises)


def surprising_layers(expected: Mapping[str, Outcome], layers: Sequence[CompiledLayer]) -> Iterator[Reason]:
    """Yield the nodes that were predicted to run in INT8 and do not.

    Args:
        expected: node name -> prediction.
        layers: what the compiler made of the graph.
    """
    integer = _integer_nodes(layers)
    listed = {node for layer in layers for node in layer.nodes}
    for name, outcome in expected.items():
        if outcome != "int8" or name in integer:
            continue
        if name in listed:
            detail = "Predicted to run in INT8, compiled to float."
            remedy = "No rule explains it: measure this layer before trusting a speed-up."
            yield Reason("unverified", "prediction", name, detail, remedy)
        else:
            detail = (
                "In no kernel: the compiler merged it with an equal layer, or found that nobody needs it."
            )
            yield Reason("note", "removed", name, detail, "Nothing, if that is meant.")


def _integer_nodes(layers: Sequence[CompiledLayer]) -> frozenset[str]:
    return int8_nodes(layers) | {node for layer in layers if layer.int8_product for node in layer.nodes}


def _profiles(model: ModelProto, shapes: Mapping[str, Shape]) -> tuple[dict[str, ShapeRange], ...]:
    dims = input_dims(model)
    # whatever the first dimension is called, it is the batch
    named = {name: (BATCH, *d[1:]) if d and isinstance(d[0], str) else d for name, d in dims.items()}
    fixed = {which: dict(shapes) for which in ("min", "opt", "max")}
    return derive_profiles(named, ShapeRequest(batches=("1",), fixed=fixed))


def _refusal(rule: str, error: EngineError) -> Reason:
    return Reason("blocked", rule, "(graph)", error.message, error.hint)


def _ask_onnxruntime(path: Path, model: ModelProto, request: CheckRequest) -> _Answer:
    """Load the graph, see which kernels it gets, and run it once if asked; without the package say nothing."""
    answer = _Answer()
    try:
        uses = executed_kernels("ort-cpu", path)
    except BackendUnavailable:
        if request.compile:
            raise
        return answer
    except (EngineError, ArtifactError) as error:
        answer.reasons.append(Reason("blocked", "loader", "(graph)", error.message, error.hint))
        answer.examined.append("loader of ONNX Runtime")
        return answer
    answer.measured = sum(use.integer for use in uses)
    detail = "Its weight is quantized, but it runs as {}."
    answer.reasons += [
        Reason("note", "kernel", use.layer.node, detail.format(use.kernel), "See what the rules say of it.")
        for use in uses
        if not use.integer
    ]
    with open_engine("ort-cpu", path) as engine:
        answer.examined.append(f"loaded in {engine.label}")
        if request.compile:
            try:
                outputs = engine.run(_feeds(engine.inputs, model, request.shapes))
            except EngineError as error:
                answer.reasons.append(_refusal("run", error))
                return answer
            answer.examined.append(f"run in {engine.label}")
            answer.proven = all(np.isfinite(v).all() for v in outputs.values() if v.dtype.kind == "f")
    if request.compile and not answer.proven:
        detail = "The output of a run on noise is not finite."
        answer.reasons.append(Reason("unverified", "run", "(graph)", detail, "Run it on real inputs."))
    return answer


def _feeds(infos: tuple[TensorInfo, ...], model: ModelProto, shapes: Mapping[str, Shape]) -> Feeds:
    """Return noise for floats and zeros for all else."""
    profiles = _profiles(model, shapes)
    rng = np.random.default_rng(0)
    feeds = {}
    for info in infos:
        given = profiles[0][info.name].opt if profiles else tuple(int(n or 1) for n in info.shape)
        value = rng.standard_normal(given) if info.dtype.startswith("float") else np.zeros(given)
        feeds[info.name] = value.astype(info.dtype)
    return feeds
