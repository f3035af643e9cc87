"""Which shapes will the engine take? Batch and resolution, or trtexec's grammar, become a profile for every input."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from onnx import ModelProto, ValueInfoProto
from pydantic import ValidationError

from gacq_deploy.backends.trt.profiles import Shape
from gacq_deploy.build_trt.options import ProfileRanges, ShapeRange
from gacq_deploy.errors import UsageError
from gacq_deploy.graph.dimensions import BATCH, HEIGHT, WIDTH

SAMPLE = "sample"
_SIZE = re.compile(r"([0-9]+)(?:x([0-9]+))?")
LARGEST = 2**31 - 1
_NUMBER = re.compile(r"[0-9]+")


@dataclass(frozen=True)
class Span:
    """Smallest, usual and largest value of one dimension."""

    min: int
    opt: int
    max: int


@dataclass(frozen=True)
class ShapeRequest:
    """What the user asked for; every ``batch`` with every ``resolution`` is one profile.

    ``fixed`` holds trtexec's ``--shapes``, ``--minShapes``, ``--optShapes`` and ``--maxShapes`` by the keys ``min``,
    ``opt`` and ``max``; inputs it names leave the rest to the other two.
    """

    batches: tuple[str, ...] = ("1:4:8",)
    resolutions: tuple[str, ...] = ()
    fixed: Mapping[str, Mapping[str, Shape]] = field(default_factory=dict)


_Dims = tuple[int | str, ...]


def input_dims(model: ModelProto) -> dict[str, _Dims]:
    """Return input name -> dimensions, numbers or the names of dynamic ones, in the graph's order."""
    # before IR version 4 every weight was an input, too
    stored = {t.name for t in model.graph.initializer}
    return {info.name: _dims(info) for info in model.graph.input if info.name not in stored}


def _dims(info: ValueInfoProto) -> _Dims:
    dims: list[int | str] = []
    for axis, dim in enumerate(info.type.tensor_type.shape.dim):
        name = dim.dim_param or f"{info.name}[{axis}]"
        dims.append(dim.dim_value if dim.HasField("dim_value") else name)
    return tuple(dims)


def derive_profiles(
    inputs: Mapping[str, _Dims], request: ShapeRequest, *, size_multiple: int = 1
) -> tuple[dict[str, ShapeRange], ...]:
    """Return one profile for every batch and resolution asked for; none for a graph without dynamic dimensions.

    Args:
        inputs: from :func:`input_dims`. A dimension named ``batch`` takes ``request.batches``; dimensions 2 and 3
            of ``sample``, and others of their names, take ``request.resolutions``.
        request: what the user asked for.
        size_multiple: what dimensions named ``height`` and ``width`` must be multiples of.

    Raises:
        UsageError: malformed, contradicts a fixed dimension, no multiple, or a dynamic dimension nobody gave a size.
    """
    _check_known(inputs, request.fixed)
    fixed_spans = _spans_of(inputs, request.fixed)
    profiles: list[dict[str, ShapeRange]] = []
    for batch in request.batches:
        for resolution in request.resolutions or (None,):
            known = _known(inputs, parse_span(batch, what="--batch"), resolution) | fixed_spans
            profile = {name: _range(name, dims, known, request.fixed) for name, dims in inputs.items()}
            _check_multiples(inputs, profile, size_multiple)
            if profile not in profiles:
                profiles.append(profile)
    dynamic = any(isinstance(d, str) for dims in inputs.values() for d in dims)
    return tuple(profiles) if dynamic else ()


def parse_span(text: str, *, what: str) -> Span:
    """Read ``4``, ``1:8`` (tuned for the largest) or ``1:4:8``.

    Raises:
        UsageError: anything else.
    """
    parts = text.split(":")
    if not 1 <= len(parts) <= 3 or not all(_NUMBER.fullmatch(p) for p in parts):
        raise UsageError(f"{what} {text!r} is not N, MIN:MAX or MIN:OPT:MAX.", f"Example: {what} 1:4:8")
    numbers = [int(p) for p in parts]
    if max(numbers) > LARGEST:
        raise UsageError(f"{what} {text!r}: a dimension ends at {LARGEST}.", f"Example: {what} 1:4:8")
    low, mid, high = {1: numbers * 3, 2: [*numbers, numbers[-1]], 3: numbers}[len(numbers)]
    if not 0 < low <= mid <= high:
        raise UsageError(f"{what} {text!r} needs 0 < MIN <= OPT <= MAX.", f"Example: {what} 1:4:8")
    return Span(low, mid, high)


def parse_shapes(text: str, *, what: str) -> dict[str, Shape]:
    """Read trtexec's ``input:1x4x64x64,other:1``.

    Raises:
        UsageError: anything else, or an input named twice.
    """
    found: dict[str, Shape] = {}
    for item in text.split(","):
        name, separator, dims = item.strip().rpartition(":")
        parts = dims.split("x")
        if (
            not separator
            or not name
            or not all(_NUMBER.fullmatch(p) and 0 < int(p) <= LARGEST for p in parts)
        ):
            raise UsageError(
                f"{what}: {item.strip()!r} is not NAME:AxBxC.", "Example: sample:2x4x64x64,timestep:2"
            )
        if name in found:
            raise UsageError(f"{what} names input '{name}' twice.", "Give each input one shape.")
        found[name] = tuple(int(p) for p in parts)
    return found


def corners(profile: ProfileRanges) -> tuple[dict[str, Shape], ...]:
    """Return the smallest, usual and largest shapes of a profile, each once: where engines are compared."""
    found: list[dict[str, Shape]] = []
    for which in ("min", "opt", "max"):
        shapes: dict[str, Shape] = {name: getattr(r, which) for name, r in profile.items()}
        if shapes not in found:
            found.append(shapes)
    return tuple(found)


def _check_known(inputs: Mapping[str, _Dims], fixed: Mapping[str, Mapping[str, Shape]]) -> None:
    for shapes in fixed.values():
        for name, shape in shapes.items():
            if name not in inputs:
                raise UsageError(f"The graph has no input '{name}'.", f"Its inputs are {', '.join(inputs)}.")
            dims = inputs[name]
            fits = len(shape) == len(dims) and all(
                isinstance(d, str) or d == n for d, n in zip(dims, shape, strict=True)
            )
            if not fits:
                raise UsageError(
                    f"Input '{name}' has the dimensions {_text(dims)}, asked for was {_text(shape)}.",
                    "Only dynamic (named) dimensions can be chosen.",
                )


def _spans_of(inputs: Mapping[str, _Dims], fixed: Mapping[str, Mapping[str, Shape]]) -> dict[str, Span]:
    """Return what the fixed shapes say of named dimensions: other inputs have the same ones."""
    found: dict[str, tuple[Span, str]] = {}
    for name, dims in inputs.items():
        given = [fixed[which][name] for which in ("min", "opt", "max") if name in fixed.get(which, {})]
        if len(given) < 3:
            continue
        for axis, dim in enumerate(dims):
            if isinstance(dim, int):
                continue
            span = Span(*(shape[axis] for shape in given))
            other, owner = found.setdefault(dim, (span, name))
            if other != span:
                raise UsageError(
                    f"Inputs '{owner}' and '{name}' share the dimension '{dim}', but their shapes differ in it.",
                    "Give it the same sizes in every input.",
                )
    return {dim: span for dim, (span, _) in found.items()}


def _known(inputs: Mapping[str, _Dims], batch: Span, resolution: str | None) -> dict[str, Span]:
    known = {BATCH: batch}
    dims = inputs.get(SAMPLE, ())
    if resolution is None:
        return known
    height, width = _parse_resolution(resolution)
    for axis, span in ((2, height), (3, width)):
        dim = dims[axis] if len(dims) > axis else None
        if isinstance(dim, str):
            known[dim] = span
        elif dim is None or span != Span(dim, dim, dim):
            raise UsageError(
                f"--resolution {resolution!r}: the graph's sample is fixed at {_text(dims[2:4])}.",
                "Leave the resolution out, or export again with export.dynamic_resolution: true in the recipe.",
            )
    return known


def _parse_resolution(text: str) -> tuple[Span, Span]:
    parts = [_SIZE.fullmatch(p) for p in text.split(":")]
    if not 1 <= len(parts) <= 3 or not all(parts):
        raise UsageError(
            f"--resolution {text!r} is not HxW, MIN:MAX or MIN:OPT:MAX.",
            "Example: --resolution 64x64:128x128",
        )
    heights = ":".join(p[1] for p in parts if p)
    widths = ":".join(p[2] or p[1] for p in parts if p)
    return parse_span(heights, what="--resolution"), parse_span(widths, what="--resolution")


def _range(
    name: str, dims: _Dims, known: Mapping[str, Span], fixed: Mapping[str, Mapping[str, Shape]]
) -> ShapeRange:
    given = [fixed.get(which, {}).get(name) for which in ("min", "opt", "max")]
    spans: list[Span] = []
    if not all(given):
        spans = [_span(name, dim, known) for dim in dims]
    shapes: list[Shape] = []
    for shape, which in zip(given, ("min", "opt", "max"), strict=True):
        derived = tuple(getattr(span, which) for span in spans)
        shapes.append(shape or derived)
    try:
        return ShapeRange(min=shapes[0], opt=shapes[1], max=shapes[2])
    except ValidationError:
        raise UsageError(
            f"Input '{name}': {' : '.join(_text(s) for s in shapes)} is not min <= opt <= max.",
            "Give --min-shapes, --opt-shapes and --max-shapes that are in order.",
        ) from None


def _span(name: str, dim: int | str, known: Mapping[str, Span]) -> Span:
    if isinstance(dim, int):
        return Span(dim, dim, dim)
    if dim not in known:
        raise UsageError(
            f"Dimension '{dim}' of input '{name}' is dynamic and nobody gave it a size.",
            f"Give --resolution, or --shapes {name}:... (or --min-shapes, --opt-shapes, --max-shapes).",
        )
    return known[dim]


def _check_multiples(inputs: Mapping[str, _Dims], profile: ProfileRanges, multiple: int) -> None:
    for name, dims in inputs.items():
        for axis in (axis for axis, dim in enumerate(dims) if dim in (HEIGHT, WIDTH)):
            for shape in (profile[name].min, profile[name].opt, profile[name].max):
                if shape[axis] % multiple:
                    raise UsageError(
                        f"Input '{name}' of {_text(shape)}: the model takes heights and widths that are multiples of "
                        f"{multiple}.",
                        f"The next is {-(-shape[axis] // multiple) * multiple}.",
                    )


def _text(dims: Sequence[int | str]) -> str:
    return "x".join(map(str, dims))
