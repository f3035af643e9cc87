"""How do many rows run in an engine that takes a few at once?"""

from __future__ import annotations

import numpy as np

from gacq_deploy.backends.base import Engine, Feeds
from gacq_deploy.storage.files import Array


def run_in_batches(engine: Engine, inputs: Feeds, batch: int) -> Array:
    """Return the engine's only output for all rows of ``inputs``, run at most ``batch`` rows at once."""
    name = engine.outputs[0].name
    rows, size = len(next(iter(inputs.values()))), min(batch, engine.max_rows or batch)
    parts = [
        engine.run({k: v[start : start + size] for k, v in inputs.items()})[name]
        for start in range(0, rows, size)
    ]
    return np.concatenate(parts)
