"""Does every case of the fault matrix hold? Its test is run, those too that ``make test`` leaves to ``make soak``.

``python -m benchmarks.faults`` runs the test of every row of ``tests/faults/matrix.py`` and writes a line a row into
``benchmarks/results/faults.jsonl``, of which ``make docs`` makes the column "held" of ``docs/reliability.md``. The exit
code is 1 where one did not hold.
"""

from __future__ import annotations

import argparse
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.outcomes import run_tests
from benchmarks.store import RESULTS, write_rows
from tests.faults.matrix import ROWS
from tests.support.programs.commands import ROOT

OUT = RESULTS / "faults.jsonl"


def main(arguments: list[str] | None = None) -> int:
    """Run every row; the exit code is 1 where one did not hold."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args(arguments)
    tested = [row for row in ROWS if row.tested]
    outcome = run_tests(ROOT, {row.shown_by for row in tested})
    rows = {row.key: {"test": row.shown_by, "held": row.shown_by in outcome.passed} for row in tested}
    about = {
        "command": "python -m benchmarks.faults",
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
    }
    write_rows(asked.out, rows, about)
    failed = [key for key, row in rows.items() if not row["held"]]
    print(f"{len(rows) - len(failed)} of {len(rows)} cases held")
    for key in failed:
        print(f"{key}: {outcome.failed.get(rows[key]['test'], 'was not run')}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
