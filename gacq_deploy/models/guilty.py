"""Which keys of a configuration are to blame for what is wrong? Those without whose values it would not be so."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from gacq_deploy.models.base import Config

_USUAL_SIZE = 64
_NOTHING = object()

WhatIsWrong = Callable[[Config], str | None]
"""What is wrong with a model of this configuration; None: nothing."""
Sizes = Sequence[tuple[int, int]]
"""Pairs of a size that a model has and the one that it should have."""


class WorkSpent(Exception):
    """A look may not do more work; no reader's own exception, so that none of them takes it for one."""


def guilty_keys(
    config: Config, defaults: Config, look: WhatIsWrong, seen: str, sizes: Sizes = ()
) -> list[str]:
    """Return the keys without whose values all would be well, or else those without which it looks different.

    A look is costly: the values that most often heal are tried first, each key's first before any key's second.

    Args:
        config: which is wrong.
        defaults: key -> what its class takes where nothing is said; only these keys are asked for.
        look: may raise WorkSpent; the answer then is what was found before.
        seen: by ``look`` of ``config``.
        sizes: what is known of the right ones.
    """
    change: dict[bool, set[str]] = {False: set(), True: set()}
    # who lies rarely says what the class itself would have said
    for usual in (False, True):
        keys = [k for k in config.keys() & defaults.keys() if _is_same(config[k], defaults[k]) is usual]
        heal: set[str] = set()
        try:
            for key, other in _trials({k: _others(config[k], defaults[k], sizes) for k in keys}):
                shown = None if key in heal else look({**config, key: other})
                if shown is None:
                    heal.add(key)
                elif shown != seen:
                    change[usual].add(key)
        except WorkSpent:
            return sorted(heal or change[False] or change[True])
        if heal:
            return sorted(heal)
    return sorted(change[False] or change[True])


def _trials(others: Mapping[str, list[Any]]) -> Iterator[tuple[str, Any]]:
    """Yield key and value: the first of every key, then the second; within a round in the order of the keys."""
    keys = sorted(others)
    for values in zip_longest(*(others[key] for key in keys), fillvalue=_NOTHING):
        yield from ((key, value) for key, value in zip(keys, values, strict=True) if value is not _NOTHING)


def _is_same(value: Any, default: Any) -> bool:
    """Tell whether a value is the class's own; in JSON a tuple is a list."""
    return bool(
        value == (list(default) if isinstance(value, list) and isinstance(default, tuple) else default)
    )


def _others(value: Any, default: Any, sizes: Sizes) -> list[Any]:
    """Return values that could stand in a key's place, each once."""
    others: list[Any] = [] if default is inspect.Parameter.empty else [default]
    if isinstance(value, bool):
        others.append(not value)
    elif isinstance(value, int | float):
        others += [*_in_proportion(value, sizes), 1, _USUAL_SIZE, value + 1]
    elif value is None:
        others.append(1)
    elif isinstance(value, list | tuple) and value:
        others += [[*value, value[-1]], [*value[:-1]], *_scaled(value)]
    once: list[Any] = []
    for other in others:
        if not any(_is_twin(other, known) for known in (value, *once)):
            once.append(other)
    return once


def _is_twin(one: Any, other: Any) -> bool:
    """Tell whether two values are the same and of the same type."""
    return isinstance(one, bool | float) is isinstance(other, bool | float) and _is_same(one, other)


def _in_proportion(value: float, sizes: Sizes) -> list[int]:
    """Return a whole number as it would be if one of the sizes were right."""
    if not isinstance(value, int):
        return []
    return [value * right // wrong for wrong, right in sizes if wrong and value * right % wrong == 0]


def _scaled(values: Sequence[Any]) -> list[list[int]]:
    """Return half and twice a list of whole numbers."""
    if not all(isinstance(value, int) for value in values):
        return []
    return [[value // 2 for value in values], [2 * value for value in values]]
