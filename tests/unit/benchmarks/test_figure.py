import numpy as np
import pytest

from benchmarks.quality.figure import colour, mean_cosines
from gacq_deploy.artifact.diagnostics import Diagnostics, StageWeights
from gacq_deploy.errors import UsageError


def diagnostics(*cosines: float | None) -> Diagnostics:
    def stage(name: str, value: float | None) -> StageWeights:
        before = None if value is None else np.array([[1, value], [value, 1]], np.float32)
        after = None if before is None else before / 2
        return StageWeights(name, "gac", np.ones(2, np.float32), None, before, after, 2.0, {}, ())

    index = np.zeros(2, np.int64)
    stages = tuple(stage(f"block{i}", value) for i, value in enumerate(cosines))
    return Diagnostics(index, index, index, stages, index[:1], {})


def test_cosines_are_averaged_over_the_stages_that_have_them() -> None:
    before, after = mean_cosines([diagnostics(0.2, None), diagnostics(0.6)])
    assert before == pytest.approx(np.array([[1, 0.4], [0.4, 1]]))
    assert after == pytest.approx(before / 2)


def test_uniform_weights_have_nothing_to_draw() -> None:
    with pytest.raises(UsageError, match="0 of 1 stages"):
        mean_cosines([diagnostics(None)])


def test_colours_run_from_red_over_white_to_blue() -> None:
    assert colour(0.0) == (255, 255, 255)
    assert colour(1.0)[2] > colour(1.0)[0]
    assert colour(-1.0)[0] > colour(-1.0)[2]
