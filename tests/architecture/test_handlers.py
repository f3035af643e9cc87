"""Does anything catch more than it names? Who catches ``ValueError``, ``TypeError`` or ``KeyError`` hides bugs, too."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NARROW = (ValueError, TypeError, KeyError)
MOST = 53
"""Such handlers today: libraries that name no error of their own, and text of theirs. The number may only go down."""


def caught(tree: ast.AST) -> Iterator[tuple[int, list[ast.expr]]]:
    """Yield the line of each handler and of each ``suppress``, and what it catches; nothing stands for everything."""
    for node in ast.walk(tree):
        match node:
            case ast.ExceptHandler(type=ast.Tuple(elts=kinds)):
                yield node.lineno, kinds
            case ast.ExceptHandler(type=kind):
                yield node.lineno, [kind] if kind else []
            case ast.Call(func=ast.Name(id="suppress") | ast.Attribute(attr="suppress")):
                yield node.lineno, node.args


def is_wide(kind: ast.expr) -> bool:
    """Tell whether an exception's name stands for one of these, a class above them, or a list of many."""
    name = kind.attr if isinstance(kind, ast.Attribute) else getattr(kind, "id", "")
    found = getattr(builtins, name, None)
    if isinstance(found, type):
        return any(issubclass(narrow, found) for narrow in NARROW)
    # a constant is a tuple of exceptions; what is unpacked or called may be anything
    return not name or name.isupper()


def wide_handlers(source: str) -> list[int]:
    """Return the lines of a module's handlers that catch so much."""
    return [line for line, kinds in caught(ast.parse(source)) if not kinds or any(map(is_wide, kinds))]


def test_handlers_that_catch_more_than_they_name_do_not_grow() -> None:
    files = sorted((*(ROOT / "gacq_deploy").rglob("*.py"), *(ROOT / "cli").rglob("*.py")))
    found = {path.relative_to(ROOT): wide_handlers(path.read_text(encoding="utf-8")) for path in files}
    places = [f"{path}:{line}" for path, lines in found.items() for line in lines]
    assert len(places) == MOST, "lower MOST, or name what is caught:\n" + "\n".join(places)


@pytest.mark.parametrize(
    ("clause", "wide"),
    [
        ("except:", True),
        ("except Exception:", True),
        ("except (OSError, TypeError):", True),
        ("except LookupError as error:", True),
        ("except FAILURES:", True),
        ("except _FAILURES as error:", True),
        ("except (OSError, *OTHERS):", True),
        ("except OSError:", False),
        ("except (json.JSONDecodeError, UnicodeDecodeError):", False),
        ("except IndexError:", False),
        ("except errors.GacqError:", False),
    ],
)
def test_what_is_wide(clause: str, wide: bool) -> None:
    assert bool(wide_handlers(f"try:\n    f()\n{clause}\n    pass\n")) is wide


def test_what_is_suppressed_counts() -> None:
    assert wide_handlers(
        "with suppress(KeyError):\n    f()\nwith contextlib.suppress(OSError):\n    f()\n"
    ) == [1]
