"""How much memory of its own does a process take? What is mapped from files, and can be read again, is left out.

``python -m tests.support.programs.anonymous_memory GRAPH`` runs a graph in pieces on one row and writes MB as JSON.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from gacq_deploy.backends.pieces import PieceEngine

_EVERY = 0.002
"""Seconds between two looks."""


def anonymous_mb() -> float:
    """Return RssAnon of this process in MB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) / 1024


@contextmanager
def sampled_peak() -> Iterator[dict[str, float]]:
    """Yield what holds, after the context, ``before`` and ``peak``: MB of this process, looked at again and again."""
    found = {"before": anonymous_mb(), "peak": 0.0}
    done = threading.Event()

    def look() -> None:
        while not done.wait(_EVERY):
            found["peak"] = max(found["peak"], anonymous_mb())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def main(graph: str) -> None:
    """Run a graph of open batch on one row of ones."""
    with sampled_peak() as found, PieceEngine(Path(graph), threads=1) as engine:
        feeds = {i.name: np.ones([size or 1 for size in i.shape], i.dtype) for i in engine.inputs}
        outputs = engine.run(feeds)
    finite = all(bool(np.isfinite(value).all()) for value in outputs.values())
    sys.stdout.write(json.dumps({**found, "pieces": len(engine.pieces), "finite": finite}))


if __name__ == "__main__":
    main(*sys.argv[1:])
