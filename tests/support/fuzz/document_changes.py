"""What can be wrong with a document that parses, or nearly? Random changes, sealed again as an attacker would."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Collection, Iterator
from random import Random
from typing import Any

from gacq_deploy.storage.digests import digest_json

Place = tuple[Any, ...]
Change = Callable[[Random, Any, Place], None]
OTHER_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3, 10**9, 10**17, 2**63 - 1, -(2**63), 1.5, 1.0, -0.0, 5e-324, 1e300, -1e300, "", "x",
    "1", "nan", "1e999", "../x", "/", "a/b", "\x00", "\x1b]0;x\x07", "\u202e", "\u2028", "\x85", "\U0001f600",
    "é" * 300,    "a" * 5000, [], {}, [[]], [None], [0] * 300, {"a": 1}, {"": {}}, [1, 2], [-1], ["a"],
)  # fmt: skip
RAW_JSON = (
    "NaN", "-Infinity", "1e999", "-0", "1E5", "1e-999", "9" * 50, "9" * 5000, '"\\ud800"', '"\\u0000"', "tru", "'a'",
    "01", "1.", '{"a": 1, "a": 2}', "36893488147419103232", "[" * 99 + "]" * 99, "[" * 200 + "]" * 200, "[" * 5000,
    '{"a":' * 150 + "1" + "}" * 150, "0." + "0" * 98 + "1", "// x",
)  # fmt: skip
"""Texts of values that no value of Python is written as."""
RAW_YAML = (
    "0x_", "0b_", "+0x_", "0o17", "1:30:00", "190:20:30.15", "1_000", ".inf", "-.INF", ".nan", "1e5", "1.e+3", "1e999",
    "2024-13-45", "2024-01-02", "2024-01-02 25:00:00", "!!python/object:os.system x", "!!set {a, b}", "!!binary aGk=",
    "!!binary '*'", "!!int '3'", "!!int x", "!!float x", "!!null x", "!!bool x", "!!omap [a: 1]", "!!timestamp x",
    "!x y",
    "!<x> a", "! a", "&a [*a]", "&a {<<: *a}", "{<<: 3}", "{<<: [1]}", "{<<: {a: 1}}", "*a", "~", "yes", "<<", "=",
    "? [a]", "|", "> x", '"\\x80\\U0001F600"', '"\\ud800"', "'\x85'", "[[[[", "{a: 1, a: 2}", "{[a]: b}", "{{}: 1}",
    "{1: 2}", "{null: 2}", "9" * 5000, "0." + "1" * 200, "%x", "@x", "[a, &b b, *b]", "- a", "--- a", "...",
)  # fmt: skip
"""Likewise of YAML."""
_RAW, _TWICE, _SEAL = "\ue000", "\ue001", "\ue002"
_RAW_TEXT = re.compile(rf'"{_RAW}((?:[^"\\]|\\.)*)"')
_TWICE_KEY = re.compile(rf'"{_TWICE}')
_DEEPEST = 300
"""Levels of a document that the changes make."""


def changed_document(rng: Random, document: Any, raw: Collection[str] = RAW_JSON) -> str:
    """Return the JSON text of a document with one to three random changes; ``raw`` may stand in place of values.

    Where it holds a key ``digest``, :func:`sealed_again` makes that true or leaves it wrong.
    """
    changed = copy.deepcopy(document)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = [place for place in _places(changed) if place != ("digest",)]
        if not places:
            break
        place = rng.choice(places)
        if rng.random() < 0.15:
            _set(changed, place, _RAW + rng.choice(tuple(raw)))
        else:
            rng.choice(CHANGES)(rng, changed, place)
    if isinstance(changed, dict) and "digest" in changed:
        changed["digest"] = _SEAL
    text = json.dumps(changed, ensure_ascii=False, indent=rng.choice((None, 2)), sort_keys=rng.random() < 0.5)
    text = _RAW_TEXT.sub(lambda found: json.loads(f'"{found[1]}"'), text)
    return _TWICE_KEY.sub('"', text)


def sealed_again(rng: Random, text: str, beside: Collection[str] = ()) -> str:
    """Return a text of :func:`changed_document` with a digest in place: as a rule that of what it now holds."""
    digest = "0" * 64
    if rng.random() < 0.9:
        try:
            found = json.loads(text)
            digest = digest_json({k: v for k, v in found.items() if k != "digest" and k not in beside})
        except (ValueError, RecursionError, AttributeError):
            pass  # no document any more: no digest is right
    return text.replace(_SEAL, digest)


def _places(value: Any, place: Place = ()) -> Iterator[Place]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        yield (*place, key)
        yield from _places(inner, (*place, key))


def _inside(document: Any, place: Place) -> Any:
    for key in place:
        document = document[key]
    return document


def _set(document: Any, place: Place, value: Any) -> None:
    _inside(document, place[:-1])[place[-1]] = value


def other_value(rng: Random, document: Any, place: Place) -> None:
    _set(document, place, copy.deepcopy(rng.choice(OTHER_VALUES)))


def leave_out(rng: Random, document: Any, place: Place) -> None:
    del _inside(document, place[:-1])[place[-1]]


def wrap(rng: Random, document: Any, place: Place) -> None:
    value = _inside(document, place)
    # a copy, here and below: a later change of the one would be a change of the other
    _set(document, place, rng.choice(([value], {"a": value}, [value, copy.deepcopy(value)], str(value))))


def nest(rng: Random, document: Any, place: Place) -> None:
    value = _inside(document, place)
    levels = rng.choice((3, 50, 97, 99, 150))
    if max(map(len, _places(document))) + levels > _DEEPEST:
        return  # the changes themselves walk through it
    for _ in range(levels):
        value = [value] if rng.random() < 0.5 else {"a": value}
    _set(document, place, value)


def move_number(rng: Random, document: Any, place: Place) -> None:
    """A number that is nearly right, or right by another type."""
    value = _inside(document, place)
    if isinstance(value, int | float) and not isinstance(value, bool):
        near = (value + 1, value - 1, -value, value * 2, value * 1e9, float(value), str(value), bool(value))
        _set(document, place, rng.choice(near))
    else:
        other_value(rng, document, place)


def swap(rng: Random, document: Any, place: Place) -> None:
    """The value of another place, and its own there; into itself it is copied."""
    other = rng.choice(list(_places(document)))
    one, two = copy.deepcopy(_inside(document, place)), copy.deepcopy(_inside(document, other))
    _set(document, place, two)
    if other[: len(place)] != place and place[: len(other)] != other:
        _set(document, other, one)


def add_key(rng: Random, document: Any, place: Place) -> None:
    """A key that nobody knows, one that stands already, or one of another part."""
    value = _inside(document, place)
    keys = [part[-1] for part in _places(document) if isinstance(part[-1], str)]
    if isinstance(value, dict):
        known = rng.choice((*value, "a")) if value else "a"
        key = rng.choice(
            ("unheard of", "", "\x1b[2J", "é", f"{_TWICE}{known}", *keys[:3], rng.choice([*keys, "a"]))
        )
        value[key] = copy.deepcopy(rng.choice(OTHER_VALUES))
    elif isinstance(value, list):
        tail = rng.choice((value * 2, value * 50, [*value, None], value[::-1]))
        value[rng.randrange(len(value) + 1) :] = map(copy.deepcopy, tail)
    else:
        wrap(rng, document, place)


def rename_key(rng: Random, document: Any, place: Place) -> None:
    parent = _inside(document, place[:-1])
    if isinstance(parent, dict):
        key = place[-1]
        others = (f"{key}s", key.upper(), f" {key}", f"{key}.x", "\x1b[2J", "", "a" * 500, "../x", "0")
        parent[rng.choice(others)] = parent.pop(key)
    else:
        leave_out(rng, document, place)


CHANGES: tuple[Change, ...] = (
    other_value, other_value, leave_out, wrap, nest, move_number, swap, add_key, rename_key,
)  # fmt: skip
