"""What happens inside the process that measures one engine?

Started as ``python -m gacq_deploy.bench.worker``, it reads one JSON command a line from standard input and
answers one JSON line. Nothing else runs in it, so its CPU time and its memory are the engine's.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gacq_deploy.backends.base import Engine
from gacq_deploy.build_trt.open import is_compiled, open_model
from gacq_deploy.engines.catalogue import engine_named
from gacq_deploy.errors import GacqError
from gacq_deploy.spec import Array
from gacq_deploy.storage.memory import lack_of_memory


class Worker:
    """The state between commands: one open engine and its feeds by batch size."""

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._source: tuple[str, Path] = ("", Path())
        self._feeds: dict[int, dict[str, Array]] = {}
        self._base = 0

    def open(self, engine: str, model: str, threads: int, allow_host_code: bool) -> dict[str, Any]:
        """Open the graph; tell how long it took and the memory it needed above the bare library."""
        if not is_compiled(engine):
            engine_named(engine).load()
        self._source = (engine, Path(model))
        self._base = peak_memory()
        started = time.perf_counter()
        self._engine = open_model(engine, Path(model), threads=threads, allow_host_code=allow_host_code)
        seconds = time.perf_counter() - started
        return {"label": self._engine.label, "seconds": seconds, "memory": peak_memory() - self._base}

    def warm(self, batch: int, feeds: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
        """Make seeded feeds, run until warm, and tell the time of a call and how many fill ``seconds``."""
        rng = np.random.default_rng(batch)
        drawn: dict[str, Array] = {}
        for feed in feeds:
            name = feed.pop("name")
            drawn[name] = _draw(rng, batch, **feed)
        self._feeds[batch] = drawn
        engine = self._opened()
        engine.run(self._feeds[batch])  # the first run of a shape allocates; it tells nothing of the next
        started = time.perf_counter()
        engine.run(self._feeds[batch])
        once = max(time.perf_counter() - started, 1e-6)
        calls = max(1, round(seconds / once))
        return {"calls": calls, "once": once, "memory": peak_memory() - self._base}

    def time(self, batch: int, calls: int) -> dict[str, Any]:
        """Run ``calls`` times; tell wall and CPU seconds of one call."""
        engine, feeds = self._opened(), self._feeds[batch]
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(calls):
            engine.run(feeds)
        return {
            "wall": (time.perf_counter() - wall) / calls,
            "cpu": (time.process_time() - cpu) / calls,
        }

    def kernels(self) -> dict[str, Any]:
        """Tell which weight initializers are read by integer kernels."""
        engine, model = self._source
        uses = engine_named(engine).executed_kernels(model)
        return {"kernels": {use.layer.codes: use.integer for use in uses}}

    def _opened(self) -> Engine:
        if self._engine is None:
            raise RuntimeError("the first command is 'open'")
        return self._engine


def peak_memory() -> int:
    """Return the largest resident memory of this process so far, in bytes.

    Linux keeps the parent's peak in ``ru_maxrss`` of a vforked child, so its own counter is read first.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        # not Linux; macOS counts bytes, other systems kilobytes
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _draw(rng: np.random.Generator, batch: int, *, dtype: str, shape: list[int], high: int) -> Array:
    full = (batch, *shape)
    if np.issubdtype(np.dtype(dtype), np.integer):
        return rng.integers(0, high, full).astype(dtype)
    return rng.standard_normal(full).astype(dtype)


def main() -> None:
    """Serve commands until standard input ends."""
    # what native libraries print must not look like an answer
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    worker = Worker()
    commands: dict[str, Callable[..., dict[str, Any]]] = {
        "open": worker.open,
        "warm": worker.warm,
        "time": worker.time,
        "kernels": worker.kernels,
    }
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = commands[request.pop("do")](**request)
        except (GacqError, MemoryError, RuntimeError) as error:
            said = error if isinstance(error, GacqError) else lack_of_memory(error)
            if said is None:
                raise
            answer = {"error": type(said).__name__, "message": said.message, "hint": said.hint}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
