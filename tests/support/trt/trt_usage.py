"""Which names of a library does a source file use? Read from its syntax tree, without importing anything."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

MODULE = "module"
"""Stands for the library's module among the classes."""


@dataclass(frozen=True)
class Use:
    """``owner.name``, at a line; ``owner`` is a class of the library, or :data:`MODULE`."""

    owner: str
    name: str
    line: int


def uses(source: str, receivers: Mapping[str, str], returns: Mapping[str, str]) -> list[Use]:
    """Return every name used on something of the library.

    Args:
        source: Python.
        receivers: the last name of an expression (``engine`` of ``self._loaded.engine``) -> its class.
        returns: a method's name -> the class of what it returns, for calls that are chained.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and not node.attr.startswith("__"):
            owner = _class_of(node.value, receivers, returns)
            if owner is not None:
                found.append(Use(owner, node.attr, node.lineno))
        elif isinstance(node, ast.ClassDef):
            found += _overrides(node, receivers, returns)
    return sorted(found, key=lambda use: use.line)


def probed(source: str) -> set[str]:
    """Return the names that the file asks for before it uses them: ``hasattr(x, "name")`` or getattr with a default."""
    return {
        call.args[1].value
        for call in ast.walk(ast.parse(source))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and (call.func.id, len(call.args)) in (("hasattr", 2), ("getattr", 3))
        and isinstance(call.args[1], ast.Constant)
        and isinstance(call.args[1].value, str)
    }


def unnamed(source: str, receivers: Mapping[str, str], returns: Mapping[str, str]) -> Iterator[str]:
    """Yield the names that take something which the library returned, and are in no table."""
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)):
            continue
        call = node.value.func
        if isinstance(call, ast.Attribute) and _class_of(call.value, receivers, returns) is not None:
            for target in node.targets:
                name = _last_name(target)
                if name is not None and name not in receivers:
                    yield name


def _class_of(node: ast.expr, receivers: Mapping[str, str], returns: Mapping[str, str]) -> str | None:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        if _class_of(node.func.value, receivers, returns) == MODULE:
            return node.func.attr
        return returns.get(node.func.attr)
    if isinstance(node, ast.Attribute) and _class_of(node.value, receivers, returns) == MODULE:
        return node.attr
    name = _last_name(node)
    return receivers.get(name) if name is not None else None


def _overrides(node: ast.ClassDef, receivers: Mapping[str, str], returns: Mapping[str, str]) -> Iterator[Use]:
    """Yield what a class derived from one of the library's overrides: a misspelt method would never be called."""
    for base in node.bases:
        if isinstance(base, ast.Attribute) and _class_of(base.value, receivers, returns) == MODULE:
            for part in node.body:
                if isinstance(part, ast.FunctionDef) and not part.name.startswith("_"):
                    yield Use(base.attr, part.name, part.lineno)


def _last_name(node: ast.expr) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    return node.attr if isinstance(node, ast.Attribute) else None
