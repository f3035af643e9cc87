"""What can be wrong with a safetensors file? Its header is JSON, behind eight bytes that say how long it is."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from tests.support.fuzz.document_changes import OTHER_VALUES, changed_document
from tests.support.fuzz.inputs import Input

_LENGTH = 8
"""Bytes before the header."""
_METADATA = "__metadata__"
_BITS: Mapping[str, int] = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64, "F4": 4,
}  # fmt: skip
"""Types of the format, and the size of a value."""
Header = dict[str, Any]


def head_of(data: bytes) -> bytes:
    """Return a file's bytes up to the tensors."""
    return data[: _LENGTH + int.from_bytes(data[:_LENGTH], "little")]


def with_changed_header(
    rng: Random, tried: Input, change: Callable[[Random, Any], str] | None = None
) -> Input:
    """Return a file with another header, and its length made right; ``change`` gives the header's text."""
    head = head_of(tried.data)
    said = (change or changed_header)(rng, json.loads(head[_LENGTH:])).encode("utf-8", "surrogatepass")
    return tried.holding(len(said).to_bytes(_LENGTH, "little") + said + tried.data[len(head) :])


def changed_header(rng: Random, header: Header) -> str:
    """Return the text of a header with random changes; in half of them its parser sees nothing wrong."""
    if rng.random() < 0.5:
        return changed_document(rng, header)
    for _ in range(rng.choice((1, 1, 2, 3))):
        names = [name for name in header if name != _METADATA]
        rng.choice(CHANGES)(rng, header, rng.choice(names))
    return json.dumps(header, ensure_ascii=rng.random() < 0.5)


def rename(rng: Random, header: Header, name: str) -> None:
    odd = [value for value in OTHER_VALUES if isinstance(value, str) and "\ud800" not in value]
    new = rng.choice((*odd, f"{name}.x", name.rpartition(".")[0], name.upper(), "a.b.scale", "local/x"))
    if new not in header and new != _METADATA:
        header[new] = header.pop(name)


def swap_names(rng: Random, header: Header, name: str) -> None:
    other = rng.choice([other for other in header if other != _METADATA])
    header[name], header[other] = header[other], header[name]


def retype(rng: Random, header: Header, name: str) -> None:
    """Other values in the same bytes."""
    tensor = header[name]
    kind = rng.choice(list(_BITS))
    bits = math.prod(tensor["shape"]) * _BITS[tensor["dtype"]]
    if bits % _BITS[kind] == 0:
        same = _BITS[kind] == _BITS[tensor["dtype"]]
        header[name] = {
            **tensor,
            "dtype": kind,
            "shape": tensor["shape"] if same else [bits // _BITS[kind]],
        }


def reshape(rng: Random, header: Header, name: str) -> None:
    shape = header[name]["shape"]
    shapes: list[list[int]] = [
        shape[::-1],
        [math.prod(shape)],
        [1, *shape],
        [*shape, 1],
        [math.prod(shape), *[1] * 70],
    ]
    if math.prod(shape) == 1:
        shapes.append([])
    header[name] = {**header[name], "shape": rng.choice(shapes)}


def say_otherwise(rng: Random, header: Header, name: str) -> None:
    """Other metadata, which are text."""
    known = header.get(_METADATA, {})
    key = rng.choice((*known, "format", "schema", name, ""))
    header[_METADATA] = {
        **known,
        key: rng.choice([value for value in OTHER_VALUES if isinstance(value, str)]),
    }


CHANGES: tuple[Callable[[Random, Header, str], None], ...] = (
    rename, swap_names, retype, retype, reshape, say_otherwise,
)  # fmt: skip
