"""Which reading of gradient matching moves weight off samples that conflict? Four of them, on one small problem.

``python -m benchmarks.gradient_matching`` (about a minute) writes ``benchmarks/results/gradient_matching.md``.

Two of three groups want nearly the same rounding of a linear layer, the third the opposite one, and a quarter of the
training targets belong to other rows. The readings differ in two ways: gradients of the parameters (equation 4) or
of the weights (equation 5, the paper's surrogate), and inner products as they are or cosines.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gacq_deploy.calibration.weighting.alignment import (
    directional,
    exact_meta_gradient,
    surrogate_meta_gradient,
)
from gacq_deploy.calibration.weighting.meta_learning import (
    OBJECTIVES,
    LearnedWeights,
    MetaObjective,
    MetaProblem,
    learn_weights,
)
from gacq_deploy.calibration.weighting.parts import gradient_at
from gacq_deploy.calibration.weighting.vectors import Vector
from gacq_deploy.recipe.calibration import WeightingSection

OUT = Path(__file__).parent / "results" / "gradient_matching.md"
TRAIN, VALIDATION = 192, 96
ITERATIONS = 150
READINGS: Mapping[str, MetaObjective] = {
    "no matching (`mse`)": OBJECTIVES["mse"],
    "exact, cosines (`gac`)": OBJECTIVES["gac"],
    "exact, inner products": MetaObjective(partial(exact_meta_gradient, normalised=False), is_raw=True),
    "surrogate, cosines": MetaObjective(partial(surrogate_meta_gradient, normalised=True), is_plain=True),
    "surrogate, inner products (`gac_faithful`)": OBJECTIVES["gac_faithful"],
}


@dataclass(frozen=True)
class Conflict:
    """Groups 0 and 1 want nearly the same rounding, 2 the opposite; ``corrupted`` [N] have targets of other rows."""

    problem: MetaProblem
    corrupted: NDArray[np.bool_]

    def mean_weight(self, learned: LearnedWeights, group: int) -> float:
        """Return the mean weight of a group's training rows."""
        return float(learned.weights[self.problem.groups_train == group].mean())

    def alignment(self) -> NDArray[np.float64]:
        """Return g_i . mean_t G_t before any step [N]."""
        problem = self.problem
        parts = [
            gradient_at(partial(problem.validation_loss, rows=rows), problem.theta)
            for rows in problem.validation_groups
        ]
        mean = tuple(torch.stack(tensors).mean(0) for tensors in zip(*parts, strict=True))
        train = partial(problem.train_losses, rows=np.arange(TRAIN))
        return np.asarray(directional(train, problem.theta, mean, "double_backward").numpy())


def make_conflict(seed: int) -> Conflict:
    """Return one drawing of the problem."""
    generator = torch.Generator().manual_seed(seed)
    floor = normal(generator, 8, 4).floor()
    middle, wish = floor + 0.5, 0.4 * torch.sign(normal(generator, 8, 4))
    layers = [middle + wish + 0.05 * normal(generator, 8, 4) for _ in range(2)]
    layers.append(middle - wish)
    groups = np.arange(TRAIN) % 3, np.arange(VALIDATION) % 3
    inputs = normal(generator, TRAIN, 8), normal(generator, VALIDATION, 8)
    train, validation = (_targets(x, layers, g) for x, g in zip(inputs, groups, strict=True))
    wrong = torch.randperm(TRAIN, generator=generator)[: TRAIN // 4]
    own = train[wrong] - inputs[0][wrong] @ middle
    train[wrong] += own[torch.randperm(len(wrong), generator=generator)] - own
    corrupted = np.zeros(TRAIN, dtype=bool)
    corrupted[wrong.numpy()] = True
    return Conflict(linear_problem(inputs, (train, validation), groups, floor), corrupted)


def linear_problem(
    inputs: tuple[Tensor, Tensor],
    targets: tuple[Tensor, Tensor],
    groups: tuple[NDArray[np.int64], NDArray[np.int64]],
    floor: Tensor,
) -> MetaProblem:
    """Return the reconstruction of a linear layer with soft-rounded weights; training rows first, then validation."""

    def losses(theta: Vector, part: int, rows: NDArray[np.int64]) -> Tensor:
        weight = floor + (torch.sigmoid(theta[0]) * 1.2 - 0.1).clamp(0, 1)
        return (inputs[part][rows] @ weight - targets[part][rows]).pow(2).sum(1)

    return MetaProblem(
        name="layer",
        theta=(torch.zeros_like(floor),),
        train_losses=lambda theta, rows: losses(theta, 0, rows),
        validation_loss=lambda theta, rows: losses(theta, 1, rows).mean(),
        groups_train=groups[0],
        validation_groups=[np.flatnonzero(groups[1] == k) for k in np.unique(groups[1])],
    )


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    """Return standard normal float64."""
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def rank_correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return Spearman's correlation, in [-1, 1]."""
    ranks = [np.argsort(np.argsort(x)) for x in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def main() -> None:
    """Learn under every reading and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(8)))
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    conflicts = [make_conflict(seed) for seed in args.seeds]
    lines = [_row(name, reading, conflicts, args.seeds) for name, reading in READINGS.items()]
    args.out.write_text("\n".join([_HEAD.format(count=len(args.seeds), iterations=ITERATIONS), *lines, ""]))


_HEAD = """\
`python -m benchmarks.gradient_matching`: {count} drawings, {iterations} meta iterations; mean (least to largest).
Weights have mean 1.

| objective | weight of the opposed group | of the corrupted samples | rank correlation with g_i . mean G_t |
|---|---|---|---|"""


def _row(name: str, reading: MetaObjective, conflicts: Sequence[Conflict], seeds: Sequence[int]) -> str:
    # the bound on the matching term and its normalised step are what `gac` adds: here every reading goes without
    section = WeightingSection(validation_batch=32, matching_limit=1e9, look_ahead="plain")
    opposed, corrupted, correlation = [], [], []
    for conflict, seed in zip(conflicts, seeds, strict=True):
        learned = learn_weights(conflict.problem, section, ITERATIONS, seed, objective=reading)
        opposed.append(conflict.mean_weight(learned, 2))
        corrupted.append(float(learned.weights[conflict.corrupted].mean()))
        correlation.append(rank_correlation(learned.weights, conflict.alignment()))
    cells = [f"{np.mean(x):.2f} ({min(x):.2f} to {max(x):.2f})" for x in (opposed, corrupted, correlation)]
    return f"| {name} | {' | '.join(cells)} |"


def _targets(x: Tensor, layers: Sequence[Tensor], groups: NDArray[np.int64]) -> Tensor:
    return torch.stack([row @ layers[k] for row, k in zip(x, groups, strict=True)])


if __name__ == "__main__":
    main()
