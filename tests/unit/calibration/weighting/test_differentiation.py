"""A way of differentiating is taken only where it works and agrees with the ordinary gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.gradient_matching import TRAIN, make_conflict
from gacq_deploy.calibration.weighting.alignment import (
    DirectionalMethod,
    LookAhead,
    weighted_gradient,
)
from gacq_deploy.calibration.weighting.differentiation import METHODS, choose_differentiation
from gacq_deploy.calibration.weighting.meta_learning import MetaProblem
from gacq_deploy.calibration.weighting.parts import Losses
from gacq_deploy.calibration.weighting.vectors import Vector

ROWS: NDArray[np.int64] = np.arange(TRAIN)
WEIGHTS = torch.full((TRAIN,), 1 / TRAIN, dtype=torch.float64)


@pytest.fixture(scope="module")
def problem() -> MetaProblem:
    return make_conflict(0).problem


def step_of(train: Losses, theta: Vector) -> LookAhead:
    return LookAhead(train, theta, weighted_gradient(train, theta, WEIGHTS), 0.1)


@pytest.mark.parametrize("method", METHODS)
def test_every_way_agrees_on_a_smooth_loss(problem: MetaProblem, method: DirectionalMethod) -> None:
    step = step_of(lambda theta: problem.train_losses(theta, ROWS), problem.theta)
    choice = choose_differentiation(step, WEIGHTS, lambda t: problem.validation_loss(t, ROWS[:9]), [method])
    assert choice is not None
    assert choice.how.directional == method


def test_one_that_disagrees_with_the_gradient_is_refused(problem: MetaProblem) -> None:
    def straight_through(theta: Vector) -> Tensor:
        rounded = theta[0] + (theta[0].round() - theta[0]).detach()
        return problem.train_losses((rounded,), ROWS)

    step = step_of(straight_through, problem.theta)
    assert choose_differentiation(step, WEIGHTS, lambda t: straight_through(t).mean(), METHODS[2:]) is None
    found = choose_differentiation(step, WEIGHTS, lambda t: straight_through(t).mean())
    assert found is not None
    assert found.how.directional == "double_backward"
