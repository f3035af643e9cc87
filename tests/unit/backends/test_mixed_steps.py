from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gacq_deploy.backends.base import Feeds, TensorInfo
from gacq_deploy.backends.function import FunctionEngine
from gacq_deploy.backends.mixed_steps import SteppedEngine
from gacq_deploy.errors import EngineError
from gacq_deploy.spec import Array


class Counted(FunctionEngine):
    """Adds a number to its sample, remembers the timesteps of every call, and says when it is closed."""

    def __init__(self, number: float, *, batch: int | None = None, breaks: bool = False) -> None:
        self.calls: list[list[int]] = []
        self.closed = 0
        self._breaks = breaks

        def add(feeds: Feeds) -> dict[str, Array]:
            self.calls.append(feeds["timestep"].tolist())
            return {"output": feeds["sample"] + np.float32(number)}

        inputs = (TensorInfo("sample", "float32", (batch, 2)), TensorInfo("timestep", "int64", (batch,)))
        super().__init__(add, inputs, (TensorInfo("output", "float32", (batch, 2)),), f"adds {number:g}")

    def _close(self) -> None:
        self.closed += 1
        if self._breaks:
            raise EngineError("it breaks as it closes")


def above(limit: int) -> Any:
    return lambda timesteps: timesteps > limit


def feeds(*timesteps: int) -> dict[str, Array]:
    return {"sample": np.zeros((len(timesteps), 2), np.float32), "timestep": np.array(timesteps, np.int64)}


def test_rows_of_one_kind_go_to_one_engine_as_they_are() -> None:
    int8, exact = Counted(1), Counted(2)
    with SteppedEngine(int8, exact, above(500)) as engine:
        assert engine.run(feeds(900, 900))["output"].tolist() == [[2, 2], [2, 2]]
        assert engine.run(feeds(100))["output"].tolist() == [[1, 1]]
    assert (int8.calls, exact.calls) == ([[100]], [[900, 900]])


def test_a_mixed_batch_is_split_by_row_and_put_together_again() -> None:
    int8, exact = Counted(1), Counted(2)
    with SteppedEngine(int8, exact, above(500)) as engine:
        result = engine.run(feeds(100, 900, 200, 300))["output"]
    assert result[:, 0].tolist() == [1, 2, 1, 1]
    assert int8.calls == [[100, 200, 300]]
    assert exact.calls == [[900, 900]], "a part of one row is run as two"


def test_a_fixed_batch_is_filled_up() -> None:
    int8, exact = Counted(1, batch=4), Counted(2, batch=4)
    with SteppedEngine(int8, exact, above(500)) as engine:
        assert engine.run(feeds(100, 900, 200, 800))["output"][:, 0].tolist() == [1, 2, 1, 2]
    assert {len(call) for call in int8.calls + exact.calls} == {4}


def test_both_engines_are_closed_even_if_one_breaks() -> None:
    int8, exact = Counted(1), Counted(2, breaks=True)
    with pytest.raises(EngineError, match="breaks"), SteppedEngine(int8, exact, above(500)) as engine:
        engine.run(feeds(100))
    assert (int8.closed, exact.closed) == (1, 1)
    with pytest.raises(EngineError, match="closed"):
        int8.run(feeds(100))


def test_the_label_says_both_and_the_share() -> None:
    with SteppedEngine(Counted(1), Counted(2), above(500), share="4 of 20 steps in float") as engine:
        assert engine.label == "adds 1 (INT8) + adds 2 (float), 4 of 20 steps in float"


def test_engines_of_different_models_are_refused() -> None:
    with pytest.raises(EngineError, match="cannot share a trajectory"):
        SteppedEngine(Counted(1, batch=4), Counted(2), above(500))
    plain = FunctionEngine(lambda _: {}, (TensorInfo("sample", "float32", (None, 2)),), (), "plain")
    with pytest.raises(EngineError, match="timestep"):
        SteppedEngine(plain, plain, above(500))
