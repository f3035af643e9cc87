"""Does any reader fail on what others write? New seeds for minutes a reader; what fails is kept in the corpus.

``python -m benchmarks.soak`` tries every reader of ``tests/support/fuzz/readers.py`` for ten minutes of CPU, prints
a line a reader, adds each input that a reader neither took nor refused to ``tests/data/corpus/READER/`` and writes
``benchmarks/results/soak.jsonl``. ``--seed N`` tries again what a line of it tells. An input of more CPU seconds
than allowed is ended and kept; one that cannot be ended stops the program, which tells where in the code it was, and
lies as ``last`` in the folder that was printed.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import platform
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import SystemRandom
from types import FrameType
from typing import Any

from benchmarks.store import RESULTS, keep_row
from gacq_deploy.models.loading import quiet_loading
from tests.support.fuzz.bounded import Unbounded
from tests.support.fuzz.inputs import CORPUS, Input, keep
from tests.support.fuzz.reader import FuzzedReader, Outcome, changed_input, try_input
from tests.support.fuzz.readers import READERS

OUT = RESULTS / "soak.jsonl"
MINUTES = 10.0
MOST_SECONDS = 20
"""CPU seconds of one input."""
ABOUT = {"command": "python -m benchmarks.soak", "python": platform.python_version(), "threads": 1}
LONGEST = 600
"""Seconds of one input that cannot be ended, of any clock."""
MOST_KEPT = 3
"""Inputs that failed at one place in the code."""


@dataclass
class Tally:
    """What came of the inputs of one reader."""

    tried: Counter[str] = field(default_factory=Counter)
    accepted: int = 0
    refused: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    """Exception and place in the code -> inputs."""
    seconds: float = 0.0
    slowest: float = 0.0

    def row(self, seed: int) -> dict[str, Any]:
        """Return what is written of it."""
        return {
            "seed": seed,
            "tried": sum(self.tried.values()),
            "by_sort": dict(sorted(self.tried.items())),
            "accepted": self.accepted,
            "refused": self.refused,
            "failed": sum(self.failed.values()),
            "failures": dict(sorted(self.failed.items())),
            "cpu_seconds": round(self.seconds, 1),
            "slowest_seconds": round(self.slowest, 2),
        }


@dataclass(frozen=True)
class Soak:
    """What is asked of a reader."""

    seed: int
    """With an input's number it tells what is changed."""
    seconds: float
    """Of CPU time in all."""
    corpus: Path = CORPUS
    """Where inputs that failed are kept."""
    most_seconds: float = MOST_SECONDS
    """Of CPU time for one input."""


def soak(name: str, reader: FuzzedReader, folder: Path, asked: Soak) -> Tally:
    """Try changed inputs of one reader, which works in an empty ``folder`` and has a folder ``name`` in the corpus."""
    opened = reader.open(folder)
    tally, last, number = Tally(), folder.with_name("last"), 0
    began = time.process_time()
    while (started := time.process_time()) - began < asked.seconds:
        changed, sort = changed_input(reader, opened.healthy, f"{name} {asked.seed} {number}")
        last.write_bytes(changed.data)
        with _ended_after(asked.most_seconds):
            outcome = try_input(reader, opened, changed)
        _count(tally, outcome, sort)
        if outcome.bug is not None:
            _keep(name, changed, outcome.bug, tally, asked.corpus)
        tally.slowest = max(tally.slowest, time.process_time() - started)
        number += 1
    tally.seconds = time.process_time() - began
    return tally


def _count(tally: Tally, outcome: Outcome, sort: str) -> None:
    tally.tried[sort] += 1
    if outcome.bug is not None:
        tally.failed[_place(outcome.bug)] += 1
    elif outcome.refusal is not None:
        tally.refused += 1
    else:
        tally.accepted += 1


def _keep(name: str, changed: Input, bug: BaseException, tally: Tally, corpus: Path) -> None:
    if tally.failed[_place(bug)] <= MOST_KEPT:
        print(f"{name}: {keep(name, changed, corpus)}")
        traceback.print_exception(bug, limit=-6)


def _place(bug: BaseException) -> str:
    """Return an exception's class, and where in the code it was raised."""
    frames = traceback.extract_tb(bug.__traceback__)
    ours = [frame for frame in frames if "gacq_deploy" in frame.filename] or frames
    where = f" at {Path(ours[-1].filename).name}:{ours[-1].name}" if ours else ""
    return f"{type(bug).__name__}{where}"


@contextmanager
def _ended_after(seconds: float) -> Iterator[None]:
    """End the work inside after so much CPU time; where that does not help, the process, which says where it was."""

    def end(_: int, __: FrameType | None) -> None:
        raise Unbounded(f"more than {seconds} CPU seconds")

    before = signal.signal(signal.SIGPROF, end)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    faulthandler.dump_traceback_later(LONGEST, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def main(arguments: list[str] | None = None) -> int:
    """Soak the readers that were named; the exit code is 1 where one failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--minutes", type=float, default=MINUTES, help="of CPU time, for each reader")
    parser.add_argument("--readers", default="", help=f"of {', '.join(READERS)}; with commas between them")
    parser.add_argument("--seed", type=int, default=SystemRandom().randrange(1 << 32))
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args(arguments)
    names = [name for name in asked.readers.split(",") if name] or list(READERS)
    if unknown := sorted(set(names) - set(READERS)):
        parser.error(f"no readers: {', '.join(unknown)}; there are {', '.join(READERS)}")
    failed = 0
    with tempfile.TemporaryDirectory(prefix="gacq-soak-") as base, quiet_loading():
        print(f"seed {asked.seed}, {asked.minutes:g} CPU minutes a reader, in {base}")
        for name in names:
            folder = Path(base) / name / "run"
            folder.mkdir(parents=True)
            tally = soak(name, READERS[name], folder, Soak(asked.seed, 60 * asked.minutes))
            failed += sum(tally.failed.values())
            print(name, json.dumps(tally.row(asked.seed)), flush=True)
            keep_row(asked.out, name, tally.row(asked.seed), ABOUT)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
