"""Has a node the inputs, outputs and attributes that its operator takes?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache

from onnx import AttributeProto, NodeProto, TensorProto, defs

from gacq_deploy.graph.index import DEQUANTIZE, QUANTIZE, STANDARD_DOMAINS
from gacq_deploy.graph.nodes import operand
from gacq_deploy.graph.quantized_layers import WEIGHTED
from gacq_deploy.graph.stored import is_element_type, type_text

_TAKEN_FOR_STANDARD = (QUANTIZE, DEQUANTIZE, *WEIGHTED)
"""Operators that engines and rules read as the standard ones whatever their domain."""
_ELEMENT_TYPES = ("to", "dtype", "output_dtype")
"""Attributes that hold an element type."""
_OPTIONAL = defs.OpSchema.FormalParameterOption.Optional
_VARIADIC = defs.OpSchema.FormalParameterOption.Variadic


@dataclass(frozen=True)
class _Operator:
    """What one operator takes: by its schema in the model's operator set; types and attributes by any version of it."""

    inputs: range
    outputs: range
    required: tuple[int, ...]
    """Inputs that may not be left out, by position."""
    repeats_from: int | None
    """From this one on no input may be left out."""
    attributes: Mapping[str, frozenset[int]]
    obliged: frozenset[str]
    element_types: tuple[frozenset[str], ...]


def violation_of(node: NodeProto, opset: int, stored: Mapping[str, TensorProto]) -> str:
    """Return what is wrong with a node by the schema of its operator; "" for nothing or an unknown operator.

    Args:
        node: of the main graph, or inside it.
        opset: the model's.
        stored: tensors by name; the types of those that the node reads are checked.
    """
    return next(_violations(node, opset, stored), "")


def _violations(node: NodeProto, opset: int, stored: Mapping[str, TensorProto]) -> Iterator[str]:
    names = [attribute.name for attribute in node.attribute]
    if len(set(names)) < len(names):
        yield f"has an attribute twice: {', '.join(names)}"
    is_standard = node.domain in STANDARD_DOMAINS
    operator = _look_up(node.op_type, opset)
    if operator is None or not (is_standard or node.op_type in _TAKEN_FOR_STANDARD):
        yield from (f"has an attribute '{a.name}' without a type" for a in node.attribute if not a.type)
        return
    yield from _wrong_tensors(node, operator, is_standard=is_standard)
    for attribute in node.attribute:
        yield from _wrong_attribute(attribute, operator, is_standard=is_standard)
    if missing := operator.obliged.difference(names):
        yield f"lacks its attribute '{min(missing)}'"
    for position, allowed in enumerate(operator.element_types):
        tensor = stored.get(operand(node, position))
        if tensor is not None and f"tensor({type_text(tensor.data_type)})" not in allowed:
            yield f"reads '{tensor.name}' of type {type_text(tensor.data_type)} as input {position}"


def _wrong_tensors(node: NodeProto, operator: _Operator, *, is_standard: bool) -> Iterator[str]:
    for what, names, allowed in (
        ("input", node.input, operator.inputs),
        ("output", node.output, operator.outputs),
    ):
        given, last = len(names), allowed.stop - 1
        counted = f"{given} {what}{'' if given == 1 else 's'}"
        if given < allowed.start:
            yield f"has {counted}, its operator takes at least {allowed.start}"
        # other domains have inputs of their own behind the standard ones
        if given > last and is_standard:
            yield f"has {counted}, its operator takes at most {last}"
    if operator.outputs.start and not any(node.output):
        yield "names no output"
    repeated = [] if operator.repeats_from is None else node.input[operator.repeats_from :]
    left_out = [i for i in operator.required if i < len(node.input) and not node.input[i]]
    if left_out or not all(repeated):
        yield f"lacks input {left_out[0] if left_out else [*node.input].index('')}"


def _wrong_attribute(given: AttributeProto, operator: _Operator, *, is_standard: bool) -> Iterator[str]:
    allowed = operator.attributes.get(given.name)
    if allowed is None:
        if is_standard:
            yield f"has an attribute '{given.name}', which its operator does not know"
    elif given.type not in allowed:
        wanted = " or ".join(sorted(map(_kind, allowed)))
        yield f"has an attribute '{given.name}' of kind {_kind(given.type)}, its operator takes {wanted}"
    elif given.name in _ELEMENT_TYPES and not given.ref_attr_name:
        # 0 is the default of those that may be left out
        may_be_left = given.i == 0 and given.name not in operator.obliged
        if not is_element_type(given.i) and not may_be_left:
            yield f"has an attribute '{given.name}' with the unknown element type {given.i}"


def _kind(number: int) -> str:
    known = AttributeProto.AttributeType
    return known.Name(number) if number in known.values() else f"number {number}"


@cache
def _versions() -> Mapping[str, tuple[defs.OpSchema, ...]]:
    """Return all versions of every standard operator, the oldest first."""
    found: dict[str, list[defs.OpSchema]] = {}
    for schema in sorted(defs.get_all_schemas_with_history(), key=lambda s: s.since_version):
        if schema.domain == "":
            found.setdefault(schema.name, []).append(schema)
    return {name: tuple(schemas) for name, schemas in found.items()}


@lru_cache(maxsize=1024)
def _look_up(op_type: str, opset: int) -> _Operator | None:
    """Return what an operator takes in a set; what its first version takes where the set is older than that."""
    versions = _versions().get(op_type)
    if versions is None:
        return None
    schema = next((s for s in reversed(versions) if s.since_version <= opset), versions[0])
    kinds: dict[str, set[int]] = {}
    types: list[set[str]] = []
    for version in versions:
        for name, attribute in version.attributes.items():
            kinds.setdefault(name, set()).add(attribute.type.value)  # type: ignore[attr-defined]
        for position, parameter in enumerate(version.inputs):
            types += [set()] if position == len(types) else []
            types[position] |= parameter.types
    return _Operator(
        inputs=range(schema.min_input, schema.max_input + 1),
        outputs=range(schema.min_output, schema.max_output + 1),
        required=tuple(i for i, p in enumerate(schema.inputs) if p.option != _OPTIONAL),
        repeats_from=next((i for i, p in enumerate(schema.inputs) if p.option == _VARIADIC), None),
        attributes={name: frozenset(found) for name, found in kinds.items()},
        obliged=frozenset(name for name, a in schema.attributes.items() if a.required),
        element_types=tuple(map(frozenset, types)),
    )
