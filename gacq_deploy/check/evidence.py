"""What do the target's own parser, compiler or runtime make of a graph, where they are installed?"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import numpy as np
from onnx import ModelProto

from gacq_deploy.backends.base import Feeds, TensorInfo
from gacq_deploy.backends.trt.library import INSTALLS, has_device
from gacq_deploy.backends.trt.profiles import Shape
from gacq_deploy.build_trt.compiler import Limits, compile_graph, parse_graph
from gacq_deploy.build_trt.layers import CompiledLayer, int8_nodes
from gacq_deploy.build_trt.options import CompileOptions, ShapeRange
from gacq_deploy.build_trt.profiles import ShapeRequest, derive_profiles, input_dims
from gacq_deploy.check.targets import TargetFacts
from gacq_deploy.engines.catalogue import REFERENCE, engine_named
from gacq_deploy.errors import ArtifactError, BackendUnavailable, EngineError
from gacq_deploy.graph.dimensions import BATCH
from gacq_deploy.graph.header import size_multiple
from gacq_deploy.lint.lint import Outcome

Weight = Literal["blocked", "unverified", "note"]
WEIGHTS: tuple[Weight, ...] = ("blocked", "unverified", "note")
"""The gravest first: reasons are listed in this order."""


@dataclass(frozen=True)
class Reason:
    """What speaks against a graph, or is worth knowing, at one node; ``rule`` is the lint's or one of this file."""

    weight: Weight
    rule: str
    node: str
    detail: str
    remedy: str


@dataclass(frozen=True)
class CheckRequest:
    """How far to go. ``compile``: compile (ONNX Runtime: run) the graph; ``shapes``: of inputs with open dimensions."""

    compile: bool = False
    shapes: Mapping[str, Shape] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class GraphInputs:
    """Dimensions of a graph's inputs by name, and what its open height and width are multiples of."""

    dims: Mapping[str, tuple[int | str, ...]]
    size_multiple: int

    @classmethod
    def of(cls, model: ModelProto) -> GraphInputs:
        """Return those of a graph."""
        return cls(input_dims(model), size_multiple(model))


@dataclass
class Examination:
    """What the target's own library said. ``proven``: compiled, or run, as predicted."""

    reasons: list[Reason] = field(default_factory=list)
    examined: list[str] = field(default_factory=list)
    measured: int | None = None
    proven: bool = False


def ask_tensorrt(
    path: Path,
    inputs: GraphInputs,
    expected: Mapping[str, Outcome],
    facts: TargetFacts,
    request: CheckRequest,
) -> Examination:
    """Let the target's library parse the graph, and compile it if asked; without the library say nothing.

    Args:
        path: the file.
        inputs: of its graph.
        expected: predicted outcome of each layer, by node name.
        facts: of a target with a library.
        request: see :class:`CheckRequest`.

    Raises:
        UsageError: a shape is missing, or does not fit the input.
        BackendUnavailable: compiling was asked for, and the library, its version or its device is not here.
        ResourceError: out of time or memory.
    """
    assert facts.library is not None, "the target has a library"
    examination = Examination()
    if reason := _not_here(facts):
        if request.compile:
            raise reason
        return examination
    with tempfile.TemporaryDirectory(prefix="check-") as folder:
        try:
            found = parse_graph(path, facts.library, folder=Path(folder), limits=request.limits)
        except BackendUnavailable:
            if request.compile:
                raise
            return examination
        except EngineError as error:
            examination.reasons.append(_refusal("parser", error))
            examination.examined.append(f"parser of {facts.library}")
            return examination
        examination.examined.append(f"parser of {facts.library} {found}")
        if request.compile:
            profiles = _profiles(inputs, request.shapes)
            options = CompileOptions(backend=facts.library, profiles=profiles)
            _compile(path, options, request.limits, Path(folder), expected, examination)
    return examination


def _not_here(facts: TargetFacts) -> BackendUnavailable | None:
    """Return why the installed library cannot speak for the target; None where it can, or is missing anyway."""
    if facts.library != "tensorrt":
        return None
    try:
        found = version(facts.library)
    except PackageNotFoundError:
        return None
    wanted = f"{facts.library} {facts.major}"
    if found.split(".")[0] != str(facts.major):
        return BackendUnavailable(
            f"{facts.library} {found} is installed, not {wanted}.", f"Install {wanted}."
        )
    # its builder opens the driver before it reads anything
    if not has_device():
        return BackendUnavailable(
            f"{wanted} needs a CUDA device to read a graph, and none is here.", INSTALLS
        )
    return None


def _compile(
    path: Path,
    options: CompileOptions,
    limits: Limits,
    folder: Path,
    expected: Mapping[str, Outcome],
    examination: Examination,
) -> None:
    try:
        built = compile_graph(path, options, folder=folder, limits=limits)
    except EngineError as error:
        examination.reasons.append(_refusal("compiler", error))
        return
    examination.examined.append(f"compiler of {built.library} {built.version}")
    surprises = tuple(surprising_layers(expected, built.layers))
    examination.reasons += surprises
    examination.measured = len(expected.keys() & _integer_nodes(built.layers))
    examination.proven = not any(reason.weight == "unverified" for reason in surprises)


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


def _profiles(inputs: GraphInputs, shapes: Mapping[str, Shape]) -> tuple[dict[str, ShapeRange], ...]:
    named = {name: _with_batch(dims) for name, dims in inputs.dims.items()}
    fixed = {which: dict(shapes) for which in ("min", "opt", "max")}
    request = ShapeRequest(batches=("1",), fixed=fixed)
    return derive_profiles(named, request, size_multiple=inputs.size_multiple)


def _with_batch(dims: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Name a dynamic first dimension as ours is: whatever a graph calls it, it is the batch."""
    return (BATCH, *dims[1:]) if dims and isinstance(dims[0], str) else dims


def _refusal(rule: str, error: EngineError) -> Reason:
    return Reason("blocked", rule, "(graph)", error.message, error.hint)


def ask_onnxruntime(path: Path, inputs: GraphInputs, request: CheckRequest) -> Examination:
    """Load the graph, see which kernels it gets, and run it once if asked; without the package say nothing.

    Raises:
        UsageError: a shape is missing, or does not fit the input.
        BackendUnavailable: running was asked for, and ONNX Runtime is not installed.
        ResourceError: out of memory.
    """
    examination = Examination()
    try:
        # once: loading a large graph takes longer than all rules
        engine, uses = engine_named(REFERENCE).load().open_with_kernels(path)
    except BackendUnavailable:
        if request.compile:
            raise
        return examination
    except (EngineError, ArtifactError) as error:
        examination.reasons.append(Reason("blocked", "loader", "(graph)", error.message, error.hint))
        examination.examined.append("loader of ONNX Runtime")
        return examination
    examination.measured = sum(use.integer for use in uses)
    detail = "Its weight is quantized, but it runs as {}."
    examination.reasons += [
        Reason("note", "kernel", use.layer.node, detail.format(use.kernel), "See what the rules say of it.")
        for use in uses
        if not use.integer
    ]
    with engine:
        examination.examined.append(f"loaded in {engine.label}")
        if request.compile:
            try:
                outputs = engine.run(_feeds(engine.inputs, inputs, request.shapes))
            except EngineError as error:
                examination.reasons.append(_refusal("run", error))
                return examination
            examination.examined.append(f"run in {engine.label}")
            examination.proven = all(np.isfinite(v).all() for v in outputs.values() if v.dtype.kind == "f")
    if request.compile and not examination.proven:
        detail = "The output of a run on noise is not finite."
        examination.reasons.append(Reason("unverified", "run", "(graph)", detail, "Run it on real inputs."))
    return examination


def _feeds(infos: tuple[TensorInfo, ...], inputs: GraphInputs, shapes: Mapping[str, Shape]) -> Feeds:
    """Return noise for floats and zeros for all else."""
    profiles = _profiles(inputs, shapes)
    rng = np.random.default_rng(0)
    feeds = {}
    for info in infos:
        fixed = tuple(int(size or 1) for size in info.shape)
        given = profiles[0][info.name].opt if profiles else fixed
        value = rng.standard_normal(given) if info.dtype.startswith("float") else np.zeros(given)
        feeds[info.name] = value.astype(info.dtype)
    return feeds
