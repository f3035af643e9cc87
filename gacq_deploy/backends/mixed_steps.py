"""How do two engines of one denoiser share its timesteps? Each row runs in the one that is chosen for its timestep."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from gacq_deploy.backends.base import Engine, Feeds, HostEngine
from gacq_deploy.errors import EngineError
from gacq_deploy.spec import Array

StepChoice = Callable[[NDArray[np.int64]], NDArray[np.bool_]]
"""Timesteps ``[N]`` -> whether each row runs in float, ``[N]``."""


class SteppedEngine(HostEngine):
    """An INT8 and a float engine behind one interface; it owns both and closes them.

    Rows of one timestep run in one engine, as if the other were not there. A batch of both kinds is split by row; a
    part of one row is run as two, for kernels sum in another order at one row.

    Raises:
        EngineError: the engines do not take and give the same tensors, or no ``timestep``.
    """

    def __init__(self, quantized: Engine, exact: Engine, choose: StepChoice, *, share: str = "") -> None:
        same = set(quantized.inputs) == set(exact.inputs) and quantized.outputs == exact.outputs
        if not same or all(i.name != "timestep" for i in exact.inputs):
            raise EngineError(
                f"{quantized.label} and {exact.label} cannot share a trajectory: their inputs and outputs differ, or "
                "have no 'timestep'.",
                "Take both graphs from one export.",
            )
        label = f"{quantized.label} (INT8) + {exact.label} (float)"
        super().__init__(f"{label}, {share}" if share else label, quantized.inputs, quantized.outputs)
        self._engines = {False: quantized, True: exact}
        self._choose = choose
        self._rows = quantized.inputs[0].shape[0]

    @property
    def max_rows(self) -> int | None:
        """Largest batch that both engines take."""
        limits = [e.max_rows for e in self._engines.values() if e.max_rows is not None]
        return min(limits, default=None)

    def _run(self, feeds: Feeds) -> dict[str, Array]:
        in_float = self._choose(feeds["timestep"])
        if in_float.all() or not in_float.any():
            return self._engines[bool(in_float[0])].run(feeds)
        results: dict[str, Array] = {}
        for kind, engine in self._engines.items():
            rows = np.flatnonzero(in_float == kind)
            padded = np.resize(rows, self._rows or max(2, len(rows)))
            for name, part in engine.run({k: v[padded] for k, v in feeds.items()}).items():
                whole = results.setdefault(name, np.empty((len(in_float), *part.shape[1:]), part.dtype))
                whole[rows] = part[: len(rows)]
        return results

    def _close(self) -> None:
        with ExitStack() as stack:
            for engine in self._engines.values():
                stack.push(engine)
