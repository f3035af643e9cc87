"""How do many rows run in an engine that takes a few at once?"""

from __future__ import annotations

import numpy as np

from gacq_deploy.artifact.call import SAMPLE
from gacq_deploy.backends.base import Engine, Feeds
from gacq_deploy.spec import Array, Float32


def run_in_batches(engine: Engine, inputs: Feeds, batch: int) -> Array:
    """Return the engine's only output for all rows of ``inputs``, run at most ``batch`` rows at once."""
    name = engine.outputs[0].name
    rows, size = len(next(iter(inputs.values()))), min(batch, engine.max_rows or batch)
    parts = [engine.run(_rows(inputs, start, size))[name] for start in range(0, rows, size)]
    return np.concatenate(parts)


def predict(engine: Engine, feeds: Feeds) -> Float32:
    """Run one step of any number of rows: split where the engine takes no more, and never one row alone.

    Args:
        engine: its first output is the prediction.
        feeds: its inputs by name, each ``[N, ...]``, N at least 1.

    Returns:
        The prediction ``[N, ...]``.

    Raises:
        EngineError: the feeds do not fit, or the engine failed.
        ResourceError: out of memory.
    """
    rows = len(feeds[SAMPLE])
    fixed = fixed_batch(engine)
    limit = fixed or engine.max_rows or rows
    parts = []
    for first in range(0, rows, limit):
        part = _rows(feeds, first, limit)
        size = len(part[SAMPLE])
        # kernels for one row sum in another order: an image must not depend on what it runs beside
        padded = fixed or max(size, min(2, engine.max_rows or 2))
        parts.append(engine.run(_pad(part, padded))[engine.outputs[0].name][:size])
    return np.concatenate(parts)


def _rows(feeds: Feeds, first: int, count: int) -> dict[str, Array]:
    return {name: value[first : first + count] for name, value in feeds.items()}


def _pad(feeds: Feeds, rows: int) -> dict[str, Array]:
    """Repeat the last row until every input has ``rows`` rows."""
    return {k: np.concatenate([v, np.repeat(v[-1:], rows - len(v), axis=0)]) for k, v in feeds.items()}


def fixed_batch(engine: Engine) -> int | None:
    """Return the only number of rows that the engine takes; None where it takes any."""
    shapes = [i.shape for i in engine.inputs if i.name == SAMPLE]
    return shapes[0][0] if shapes and shapes[0] else None
