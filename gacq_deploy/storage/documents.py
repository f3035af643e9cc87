"""How does somebody's text become plain data? The bounds of every document, and the door for JSON; YAML has its own.

Plain data are dicts with text keys, lists, text, finite floats, integers of 64 bits, booleans and None.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from pathlib import Path
from typing import Any

from gacq_deploy.errors import ArtifactError
from gacq_deploy.storage.outputs import require_name

MOST_BYTES = 64 << 20
"""Of a document; half a million captions are half of it."""
MOST_VALUES = 1_000_000
"""In a document; an alias of YAML counts as all that it stands for."""
_OTHERS_VALUES = 10 * MOST_VALUES
DEEPEST = 100
"""Containers inside each other."""
LONGEST_NUMBER = 100
"""Characters of a number; those of a float32 with all its zeros are 50."""
_INTEGERS = range(-(1 << 63), 1 << 63)
_SHOWN = 80
"""Characters that a message quotes."""
_JSON_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
SURROGATE = re.compile("[\ud800-\udfff]")


class Malformed(Exception):
    """A text is no document that we take; whoever asked for it makes the user's error of it."""

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(problem if line is None else f"{problem} (line {line})")
        self.problem = problem
        self.line = line
        """Counted from 1; None where no line is to blame."""


def read_bytes(path: Path, *, pipes: bool = False) -> bytes:
    """Return the bytes of a document's file, which has a bounded size; nothing waits for a pipe that nobody writes.

    Args:
        path: a regular file.
        pipes: take what a pipe holds, too: a shell's ``<(command)``.

    Raises:
        Malformed: too large, or neither of these.
        OSError: it cannot be read.
        UsageError: no file can be called so.
    """
    require_name(path)
    with open(path, "rb", opener=_open_at_once) as file:
        mode = os.fstat(file.fileno()).st_mode
        if not stat.S_ISREG(mode) and not (pipes and stat.S_ISFIFO(mode)):
            raise Malformed("it is not a regular file")
        os.set_blocking(file.fileno(), True)
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise Malformed(f"it has more than {MOST_BYTES >> 20} MiB")
    return data


def _open_at_once(name: str, flags: int) -> int:
    return os.open(name, flags | os.O_NONBLOCK)


def decode_text(data: bytes) -> str:
    """Return UTF-8 as text, without the mark that some editors put before it.

    Raises:
        Malformed: not UTF-8.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Malformed(f"byte {error.start} is not UTF-8") from None


def decode_json(data: bytes | str, *, others: bool = False) -> Any:
    """Return a JSON document as plain data.

    Args:
        data: the document.
        others: of a library that is not ours. Diffusers writes ``-Infinity`` into schedulers' configurations,
            transformers 10**30 for no limit, and a tokenizer's vocabulary holds millions of values.

    Raises:
        Malformed: not JSON, not UTF-8, half a surrogate pair, a key that stands twice, larger or deeper than any
            document of its kind; of ours also NaN or an infinity by any spelling, or an integer of more than 64 bits.
    """
    text = decode_text(data) if isinstance(data, bytes) else data
    most = _OTHERS_VALUES if others else MOST_VALUES
    # no value is shorter than a character
    if len(text) > most:
        _count_values(text, most)
    try:
        value = (_OTHERS_JSON if others else _JSON).decode(text)
    except json.JSONDecodeError as error:
        raise Malformed(f"{error.msg}, column {error.colno}", error.lineno) from None
    except RecursionError:
        raise too_deep() from None
    return plain(value, integers=None if others else _INTEGERS)


def read_json(path: Path, *, what: str, hint: str, others: bool = False) -> dict[str, Any]:
    """Read a JSON object through :func:`decode_json`; ``others``: of a library that is not ours.

    Raises:
        ArtifactError: missing or not a JSON object; ``what`` names the file's role, ``hint`` the remedy.
    """
    try:
        document = decode_json(read_bytes(path), others=others)
    except FileNotFoundError:
        raise ArtifactError(f"{what} is missing: {path}", hint) from None
    except (OSError, Malformed) as error:
        raise ArtifactError(f"{what} {path} is not readable JSON: {error}", hint) from error
    if not isinstance(document, dict):
        raise ArtifactError(
            f"{what} {path} is not readable JSON: a {type(document).__name__}, no object.", hint
        )
    return document


def too_deep() -> Malformed:
    """Return what is wrong with a document that is deeper than any of ours."""
    return Malformed(f"values lie more than {DEEPEST} levels deep")


def too_many() -> Malformed:
    """Return what is wrong with a document that is larger than any of ours."""
    return Malformed(f"it holds more than {MOST_VALUES:,} values, or {MOST_BYTES:,} characters in them")


def _count_values(text: str, most: int) -> None:
    """Refuse a JSON text of too many values before they take memory."""
    bare = _JSON_STRING.sub("", text)
    if sum(map(bare.count, ",[{")) >= most:
        raise too_many()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise Malformed(f"key '{shown(twice)}' stands twice")
    return made


def _integer(text: str) -> int:
    if len(text) > LONGEST_NUMBER:
        raise Malformed(f"an integer has {len(text)} characters")
    return int(text)


def _float(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise Malformed(f"{shown(text)} is no finite number")
    return value


def _refuse_constant(name: str) -> float:
    raise Malformed(f"it holds {name}")


_JSON = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_refuse_constant
)


_OTHERS_JSON = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer)


def plain(value: Any, depth: int = 0, integers: range | None = _INTEGERS) -> Any:
    """Return a copy in which nothing lies twice, as an alias of YAML does; refuse what is no plain data.

    ``integers`` are those that are taken; None: all that there are.
    """
    match value:
        case dict() | list() if depth == DEEPEST:
            raise too_deep()
        case dict():
            return {_key(key): plain(inner, depth + 1, integers) for key, inner in value.items()}
        case list():
            return [plain(inner, depth + 1, integers) for inner in value]
        case str() if SURROGATE.search(value):
            raise Malformed(f"{shown(value)!r} holds half a surrogate pair")
        case int() if integers is not None and value not in integers:
            raise Malformed(f"{shown(str(value))} has more than 64 bits")
        case _:
            return value


def _key(key: Any) -> str:
    if not isinstance(key, str):
        raise Malformed(f"key {shown(str(key))} is no text: put it in quotes")
    plain(key)
    return key


def shown(text: str) -> str:
    """Return somebody's text as a message can quote it: on one line, without control characters, not too long."""
    escaped = text if text.isprintable() else ascii(text)[1:-1]
    return escaped if len(escaped) <= _SHOWN else f"{escaped[:_SHOWN]}..."
