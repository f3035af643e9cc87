from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from gacq_deploy.backends.base import TensorInfo
from gacq_deploy.backends.function import FunctionEngine
from gacq_deploy.errors import EngineError

X = (TensorInfo("x", "float32", (None, 2)),)
Y = (TensorInfo("y", "float32", (None, 2)),)
FEEDS = {"x": np.ones((3, 2), np.float32)}


def test_runs_the_function_under_its_label() -> None:
    with FunctionEngine(lambda f: {"y": f["x"] * 2}, X, Y, "doubler") as engine:
        assert engine.label == "doubler"
        np.testing.assert_array_equal(engine.run(FEEDS)["y"], np.full((3, 2), 2, np.float32))


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ({"z": np.ones((3, 2), np.float32)}, r"returned \['z'\]"),
        ({"y": np.ones((3, 2))}, "float64"),
        ({"y": np.ones((3, 3), np.float32)}, r"\[3, 3\]"),
        ({"y": np.ones(3, np.float32)}, r"\[3\]"),
    ],
)
def test_holds_the_function_to_its_declaration(result: Mapping[str, Any], message: str) -> None:
    with FunctionEngine(lambda _: result, X, Y) as engine, pytest.raises(EngineError, match=message):
        engine.run(FEEDS)
