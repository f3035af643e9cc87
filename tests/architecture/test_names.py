"""A public name means one thing: where two modules share one, it is the same part of an interface in both."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
INTERFACES = {
    "main",  # of a program
    "logger",  # of a module
    "run",  # a command, and a worker's function of the same standing
    "calibrate",  # the command, and what it calls
    "checks",  # of a room of doctor
    "integer_kernels",  # of an engine that says its kernels
}


def public_names(path: Path) -> Iterator[str]:
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            yield statement.name
        elif isinstance(statement, ast.Assign):
            yield from (target.id for target in statement.targets if isinstance(target, ast.Name))
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            yield statement.target.id


def test_no_public_name_is_defined_twice() -> None:
    where = defaultdict(set)
    for folder in ("gacq_deploy", "cli"):
        for path in (ROOT / folder).rglob("*.py"):
            for name in public_names(path):
                if not name.startswith("_") and name not in INTERFACES:
                    where[name].add(str(path.relative_to(ROOT)))
    assert len(where) > 1000
    assert {name: sorted(paths) for name, paths in where.items() if len(paths) > 1} == {}
