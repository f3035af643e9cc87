"""What is a fuzzed reader, how is an input of it changed, and what came of one that was tried?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal
from unicodedata import bidirectional, category

from gacq_deploy.errors import GacqError
from tests.support.fuzz.bounded import Unbounded, counted
from tests.support.fuzz.byte_changes import changed_bytes
from tests.support.fuzz.inputs import Input

Sort = Literal["bytes", "structure"]
MOST_CALLS = 400_000
"""Of one input: a hundred times what a healthy one takes, as a rule."""
CALLS_A_BYTE = 100
"""On top, for larger inputs."""
MOST_BYTES = 1 << 18
"""No change makes more of a file."""
_DIRECTIONS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


@dataclass(frozen=True)
class Opened:
    """A reader that is ready in a folder."""

    healthy: tuple[Input, ...]
    """What its own writer leaves."""
    read: Callable[[Input], object]


@dataclass(frozen=True)
class FuzzedReader:
    """Who reads what others wrote."""

    open: Callable[[Path], Opened]
    """Make it ready in an empty folder."""
    restructure: Callable[[Random, Input], Input]
    """Return a healthy input with changed values."""
    refuses: type[GacqError]
    """What a refusal is, exactly or of a kind."""
    tries: int
    """Changed inputs in `make test`."""
    most_calls: int = MOST_CALLS
    refuses_most: bool = True
    """Whether at least a fifth of what is changed is no input any more."""


@dataclass(frozen=True)
class Outcome:
    """What a reader made of an input."""

    refusal: GacqError | None = None
    bug: BaseException | None = None
    """Not ours, not a refusal as it has to be, or more work than allowed."""


def changed_input(reader: FuzzedReader, healthy: tuple[Input, ...], seed: str) -> tuple[Input, Sort]:
    """Return a healthy input, changed as a seed tells: half of them in their bytes, half in their structure."""
    rng = Random(seed)
    tried = rng.choice(healthy)
    sort: Sort = rng.choice(("bytes", "structure"))
    if sort == "structure":
        tried = reader.restructure(rng, tried)
    if sort == "bytes" or rng.random() < 0.1:
        tried = tried.holding(changed_bytes(rng, tried.data, [other.data for other in healthy]))
    return tried.holding(tried.data[:MOST_BYTES]), sort


def try_input(reader: FuzzedReader, opened: Opened, tried: Input) -> Outcome:
    """Read an input in bounded work."""
    try:
        with counted(reader.most_calls + CALLS_A_BYTE * len(tried.data)):
            opened.read(tried)
    except GacqError as error:
        wrong = _why_wrong(error, reader)
        return Outcome(refusal=error, bug=AssertionError(f"{wrong}: {error!r}") if wrong else None)
    except (Exception, Unbounded) as error:  # noqa: BLE001 (whatever else it is, it is what is looked for)
        return Outcome(bug=error)
    return Outcome()


def _why_wrong(error: GacqError, reader: FuzzedReader) -> str:
    if not isinstance(error, reader.refuses):
        return f"no {reader.refuses.__name__}"
    if not error.hint:
        return "without a remedy"
    obeyed = [sign for sign in str(error) if _is_obeyed(sign) and sign not in "\n\t"]
    return f"with {obeyed[0]!r}, which a terminal obeys" if obeyed else ""


def _is_obeyed(sign: str) -> bool:
    """Tell whether a terminal does something else with a sign than to show it, or cannot be told it at all."""
    return category(sign) in ("Cc", "Cs", "Zl", "Zp") or bidirectional(sign) in _DIRECTIONS
