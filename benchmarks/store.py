"""How do measured rows reach the disk? JSON Lines: a row a line, behind a line ``about`` what holds for all of them."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gacq_deploy.errors import ArtifactError
from gacq_deploy.storage.files import write_bytes

RESULTS = Path(__file__).parent / "results"
Fields = Mapping[str, Any]
Rows = dict[str, dict[str, Any]]
"""Key -> what was measured."""
_HINT = "Restore it from version control, or write to another file with --out."


def load_rows(path: Path) -> Rows:
    """Return the rows of a file in their order; none without a file.

    Raises:
        ArtifactError: a line is no JSON object.
    """
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8") as file:
        lines = [_parse(line, f"{path}:{number}") for number, line in enumerate(file, 1)]
    return {line.pop("key"): line for line in lines if "key" in line}


def write_rows(path: Path, rows: Mapping[str, Fields], about: Fields | None = None) -> None:
    """Write a whole file; every row begins with its key."""
    lines: list[Fields] = [{"about": about}] if about else []
    lines += [{"key": key, **row} for key, row in rows.items()]
    text = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
    write_bytes(path, text.encode())


def keep_row(path: Path, key: str, row: Fields, about: Fields) -> None:
    """Add or replace one row of a file sorted by key; several processes may do so at the same time."""
    with _exclusive(path):
        write_rows(path, dict(sorted({**load_rows(path), key: row}.items())), about)


def finished(rows: Mapping[str, Fields], key: str, digest: str) -> bool:
    """Tell whether a row was measured under this very digest of what it depends on."""
    return key in rows and rows[key].get("digest") == digest


def _parse(line: str, place: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise ArtifactError(f"Benchmark results {place} are no JSON: {error}", _HINT) from error
    if not isinstance(found, dict):
        raise ArtifactError(f"Benchmark results {place} are no JSON object.", _HINT)
    return found


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    lock = path.with_name(f".gacq-tmp-{path.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
