"""Does a test of each mend fail without it? The mend is taken out of a copy of the checkout, and the test is run.

``python -m benchmarks.mutants`` runs every mutant of ``tests/mutants/``, after all tests that they name passed in
the copy as it is. It writes what failed, and with which words, into ``benchmarks/results/mutants.jsonl``. The exit
code is 1 where a mutant lived: a test that was named passed without the mend. Names of files (``report terminal``)
or ``--only TEXT`` choose some.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.outcomes import Outcome, run_tests
from benchmarks.store import RESULTS, keep_row
from tests.support.programs.commands import ROOT
from tests.support.programs.mutants import Mutant, mutants, stands_for

OUT = RESULTS / "mutants.jsonl"
ABOUT = {"command": "python -m benchmarks.mutants", "python": platform.python_version()}


def copy_checkout(target: Path) -> None:
    """Copy what version control holds or would hold."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


@contextmanager
def mutated(checkout: Path, mutant: Mutant) -> Iterator[None]:
    """Take the mend out of a copy, for as long as the block lasts."""
    files = {checkout / edit.file for edit in mutant.edits}
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}
    try:
        for edit in mutant.edits:
            file = checkout / edit.file
            file.write_text(edit.applied(file.read_text(encoding="utf-8")), encoding="utf-8")
        yield
    finally:
        for file, (content, time) in before.items():
            file.write_bytes(content)
            os.utime(file, ns=(time, time))  # compiled modules go by time and size


def _seen(selectors: Iterable[str], nodes: Iterable[str]) -> set[str]:
    """Return the selectors that stand for one of the tests."""
    found = list(nodes)
    return {s for s in selectors if any(stands_for(s, node) for node in found)}


def _reasons(selectors: Iterable[str], outcome: Outcome) -> dict[str, str]:
    """Return what the first failing case of each selector said."""
    first = {s: [why for node, why in outcome.failed.items() if stands_for(s, node)] for s in selectors}
    return {selector: whys[0] for selector, whys in first.items() if whys}


def main(arguments: list[str] | None = None) -> int:
    """Run the mutants that were named; the exit code is 1 where one lived."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.mutants", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("files", nargs="*", help="files of tests/mutants/, without their ending")
    parser.add_argument("--only", default="", help="mutants that say this of what they lack")
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args(arguments)
    chosen = [(f, m) for f, m in mutants(frozenset(asked.files)) if asked.only in m.without]
    named = {selector for _, mutant in chosen for selector in mutant.red}
    lived = 0
    with tempfile.TemporaryDirectory(prefix="gacq-mutants-") as folder:
        checkout = Path(folder)
        copy_checkout(checkout)
        whole = run_tests(checkout, named)
        skipped = _seen(named, whole.skipped) - _seen(named, whole.passed)
        if whole.failed or (silent := named - _seen(named, whole.passed) - skipped):
            print(
                whole.said, "not green before anything is taken out:", sorted(whole.failed) or sorted(silent)
            )
            return 1
        print(f"{len(chosen)} mutants; {len(whole.passed)} tests pass as the code is", flush=True)
        for selector in sorted(skipped):
            print(f"skipped on this machine, so shown by nothing here: {selector}")
        for file, mutant in chosen:
            with mutated(checkout, mutant):
                outcome = run_tests(checkout, mutant.red)
            alive = set(mutant.red) - _seen(mutant.red, outcome.failed) - skipped
            lived += bool(alive)
            print(f"{'ALIVE' if alive else 'red'}  {file}: {mutant.without}", flush=True)
            if alive:
                print(outcome.said, f"passed without it: {sorted(alive)}", flush=True)
            row = {
                "lived": sorted(alive),
                "failed": len(outcome.failed),
                "why": _reasons(mutant.red, outcome),
            }
            keep_row(asked.out, f"{file}: {mutant.without}", row, ABOUT)
    return int(lived > 0)


if __name__ == "__main__":
    sys.exit(main())
