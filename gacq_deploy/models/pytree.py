"""Which tensors does a call take or give, wherever they are nested, and how is it made with others in their places?"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from gacq_deploy.artifact.call import Place


def leaves(value: Any, path: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Yield what tuples, lists and mappings hold, by place and in order; an empty one is a leaf itself."""
    members = _members(value)
    if not members:
        yield path, value
    for key, member in members:
        yield from leaves(member, (*path, key))


def replaced(value: Any, leaves_by_path: Mapping[Place, Any], path: Place = ()) -> Any:
    """Return ``value`` with other leaves in the given places; containers are copied, nothing is changed."""
    if path in leaves_by_path:
        return leaves_by_path[path]
    members = _members(value)
    if not members:
        return value
    parts = {key: replaced(member, leaves_by_path, (*path, key)) for key, member in members}
    if isinstance(value, Mapping):
        copied: Any = copy.copy(value)
        for key, part in parts.items():
            copied[key] = part
        return copied
    return type(value)(*parts.values()) if hasattr(value, "_fields") else type(value)(parts.values())


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return ``value`` with every leaf changed; containers are copied, nothing is changed."""
    return replaced(value, {path: change(leaf) for path, leaf in leaves(value)})


def call_with(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], tensors: Mapping[Place, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return ``args, kwargs`` with the tensors put in their places."""
    new = replaced({"args": args, "kwargs": dict(kwargs)}, tensors)
    return new["args"], new["kwargs"]


def call_leaves(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[Place, Any]:
    """Return everything a call is made with, by place."""
    return dict(leaves({"args": args, "kwargs": kwargs}))


def same(one: Any, other: Any) -> bool:
    """Tell whether two leaves are equal for certain; objects that do not say so are equal only to themselves."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if one is other:
        return True
    try:
        return type(one) is type(other) and bool(one == other)
    except (TypeError, ValueError, RuntimeError):
        return False


def spoken(path: Place) -> str:
    """Return a place as code has it: ``kwargs['rotary'][1]`` of ("kwargs", "rotary", 1)."""
    first, *rest = path or ("output",)
    head = str(first) if isinstance(first, str) else f"output[{first}]"
    return head + "".join(f"[{key!r}]" for key in rest)


def _members(value: Any) -> list[tuple[int | str, Any]]:
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, tuple | list):
        return list(enumerate(value))
    return []
