"""How does somebody's YAML become plain data? One door, with the bounds of every document behind it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from gacq_deploy.storage.documents import (
    DEEPEST,
    LONGEST_NUMBER,
    MOST_BYTES,
    MOST_VALUES,
    SURROGATE,
    Malformed,
    decode_text,
    plain,
    shown,
    too_deep,
    too_many,
)

_TAGS = (None, "!", *(f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map")))
"""Tags that may be written out; what a value is, the value says."""


@dataclass(frozen=True)
class YamlDocument:
    """Plain data, and where in the text each of it stands."""

    value: Any
    _node: yaml.Node | None

    def line(self, place: Sequence[int | str]) -> int:
        """Return the line, counted from 1, of the value at a path of keys and indices, or of the last one known."""
        line, node = 1, self._node
        for part in place:
            if isinstance(node, yaml.MappingNode):
                match = next(((k, v) for k, v in node.value if k.value == part), None)
                if match is None:
                    break
                line, node = _line(match[0]), match[1]
            elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
                node = node.value[part]
                line = _line(node)
            else:
                break
        return line


def decode_yaml(data: bytes | str) -> YamlDocument:
    """Return a YAML document.

    Raises:
        Malformed: not YAML, a tag, a date, or anything that :func:`decode_json` refuses.
    """
    text = decode_text(data) if isinstance(data, bytes) else data
    if half := SURROGATE.search(text):
        raise Malformed(f"character {half.start()} is half a surrogate pair")
    try:
        # the events first: to compose what they tell takes as many calls inside each other as it is deep
        expansion = _Expansion()
        for event in yaml.parse(text, Loader=yaml.CSafeLoader):
            expansion.take(event)
        loader = _Loader(text)
        node = loader.get_single_node()
        _refuse_double_keys(node)
        value = None if node is None else loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise Malformed(problem, mark.line + 1 if mark else None) from None
    return YamlDocument(plain(value), node)


def encode_yaml(document: Any) -> str:
    """Return plain data as YAML that :func:`decode_yaml` reads as the same, keys in their order."""
    written: str = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=110)
    if "\x85" in written:
        # PyYAML takes this character for a line's end, and writes it where readers fold it
        written = yaml.safe_dump(document, sort_keys=False, width=110)
    return written


class _Loader(yaml.CSafeLoader):
    """PyYAML's safe loader, but for scalars whose constructors fail in Python's own words."""


def _yaml_integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    # 0x_ is an integer without a digit to the resolver
    if len(node.value) > LONGEST_NUMBER or re.fullmatch(r"[-+]?0[bx]_*", node.value):
        raise Malformed(f"{shown(node.value)} is no integer", _line(node))
    return loader.construct_yaml_int(node)


def _yaml_float(loader: _Loader, node: yaml.ScalarNode) -> float:
    if len(node.value) > LONGEST_NUMBER:
        raise Malformed(f"{shown(node.value)} is no number", _line(node))
    value: float = loader.construct_yaml_float(node)
    if not math.isfinite(value):
        raise Malformed(f"{node.value} is no finite number", _line(node))
    return value


def _refuse_date(_: _Loader, node: yaml.ScalarNode) -> None:
    raise Malformed(f"{shown(node.value)} is a date: put it in quotes", _line(node))


for _kind, _construct in (("int", _yaml_integer), ("float", _yaml_float), ("timestamp", _refuse_date)):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _construct)


def _line(placed: yaml.Node | yaml.Event) -> int:
    assert placed.start_mark is not None, "nobody made this: it was read"
    return placed.start_mark.line + 1


@dataclass(slots=True)
class _Size:
    """Of a part of a YAML document, with every alias in it expanded."""

    values: int = 1
    characters: int = 0
    height: int = 0

    def hold(self, part: _Size) -> None:
        self.values += part.values
        self.characters += part.characters
        self.height = max(self.height, part.height + 1)


class _Expansion:
    """A document as it is told, event by event, with every alias in it expanded, but nothing made of it."""

    def __init__(self) -> None:
        self._open: list[tuple[str | None, _Size]] = [(None, _Size())]
        self._anchored: dict[str | None, _Size] = {}

    def take(self, event: yaml.Event) -> None:
        """Go on by one event.

        Raises:
            Malformed: too many values, one too deep, one that lies inside itself, or a tag.
        """
        match event:
            case yaml.SequenceStartEvent() | yaml.MappingStartEvent():
                _refuse_tag(event)
                # the name may have stood for something before
                self._anchored.pop(event.anchor, None)
                self._open.append((event.anchor, _Size()))
                self._bound(0)
            case yaml.SequenceEndEvent() | yaml.MappingEndEvent():
                self._hold(*self._open.pop())
            case yaml.ScalarEvent():
                _refuse_tag(event)
                self._hold(event.anchor, _Size(characters=len(event.value)))
            case yaml.AliasEvent():
                self._hold(None, self._meant(event))

    def _meant(self, alias: yaml.AliasEvent) -> _Size:
        if alias.anchor not in self._anchored:
            raise Malformed(f"*{shown(str(alias.anchor))} stands for nothing whole before it", _line(alias))
        return self._anchored[alias.anchor]

    def _hold(self, anchor: str | None, part: _Size) -> None:
        if anchor:
            self._anchored[anchor] = part
        whole = self._open[-1][1]
        whole.hold(part)
        if whole.values > MOST_VALUES or whole.characters > MOST_BYTES:
            raise too_many()
        self._bound(part.height)

    def _bound(self, height: int) -> None:
        # the document itself is open, too
        if len(self._open) - 1 + height > DEEPEST:
            raise too_deep()


def _refuse_tag(event: yaml.ScalarEvent | yaml.CollectionStartEvent) -> None:
    if event.tag not in _TAGS:
        raise Malformed(f"a tag is not taken: {shown(str(event.tag))}", _line(event))


def _refuse_double_keys(root: yaml.Node | None) -> None:
    """YAML readers silently keep the last of two equal keys; here that is an error."""
    waiting, known = [root], set()
    while waiting:
        node = waiting.pop()
        # an alias is its anchor's node: looked at once
        if not isinstance(node, yaml.CollectionNode) or id(node) in known:
            continue
        known.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
            continue
        seen: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise Malformed("a key is no text: put it in quotes", _line(key))
            if key.value in seen:
                raise Malformed(f"duplicate key '{shown(key.value)}'", _line(key))
            seen.add(key.value)
            waiting.append(value)
