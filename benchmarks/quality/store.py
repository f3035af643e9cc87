"""Which rows are measured? One JSON file, written whole row by row; a row counts only for what it depended on."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gacq_deploy.storage.files import read_json, write_json

RESULTS = Path(__file__).resolve().parents[1] / "results" / "quality.json"
_HINT = "Restore it from version control, or write to another file with --out."


def load_rows(path: Path) -> dict[str, dict[str, Any]]:
    """Return row key -> what was measured; empty without a file."""
    if not path.is_file():
        return {}
    return dict(read_json(path, what="Benchmark results", hint=_HINT)["rows"])


def finished(rows: Mapping[str, Mapping[str, Any]], key: str, digest: str) -> bool:
    """Tell whether a row was measured under this very digest."""
    return key in rows and rows[key].get("digest") == digest


def keep_row(path: Path, key: str, row: Mapping[str, Any]) -> None:
    """Add or replace one row; several processes may do so at the same time."""
    with _exclusive(path):
        rows = {**load_rows(path), key: dict(row)}
        write_json(path, {"command": "python -m benchmarks.quality", "rows": rows})


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    lock = path.with_name(f".gacq-tmp-{path.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
