"""Learned weights favour what helps the validation rows, and whatever goes wrong ends uniform and on record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F  # noqa: N812

from benchmarks.gradient_matching import (
    TRAIN,
    VALIDATION,
    linear_problem,
    make_conflict,
    normal,
    rank_correlation,
)
from gacq_deploy.calibration.weighting.meta_learning import (
    LearnedWeights,
    MetaProblem,
    learn_weights,
)
from gacq_deploy.calibration.weighting.sample_weights import effective_samples
from gacq_deploy.calibration.weighting.vectors import Vector
from gacq_deploy.errors import CalibrationError
from gacq_deploy.recipe.calibration import WeightingMode as Mode
from gacq_deploy.recipe.calibration import WeightingSection

MODES: tuple[Mode, ...] = ("mse", "gac", "gac_faithful")
SEEDS = (0, 1, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(2, 8)))


def make_agreement(seed: int) -> MetaProblem:
    """Return a problem whose groups share one distribution and one layer."""
    generator = torch.Generator().manual_seed(seed)
    floor = normal(generator, 8, 4).floor()
    layer = floor + torch.rand(8, 4, generator=generator, dtype=torch.float64)
    inputs = normal(generator, TRAIN, 8), normal(generator, VALIDATION, 8)
    groups = np.arange(TRAIN) % 3, np.arange(VALIDATION) % 3
    targets = tuple(x @ layer + 0.1 * normal(generator, len(x), 4) for x in inputs)
    return linear_problem(inputs, (targets[0], targets[1]), groups, floor)


def learn(
    problem: MetaProblem,
    mode: Mode = "gac",
    *,
    seed: int = 0,
    iterations: int = 8,
    initial: NDArray[np.float64] | None = None,
    **changes: Any,
) -> LearnedWeights:
    return learn_weights(problem, section(mode, **changes), iterations, seed, initial)


def section(mode: Mode = "gac", **changes: Any) -> WeightingSection:
    return WeightingSection(mode=mode, **{"validation_batch": 32, "look_ahead": "plain", **changes})


# ------------------------------------------------------------------------------------------------- what it learns


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_opposed_and_corrupted_samples_lose_weight(seed: int) -> None:
    conflict = make_conflict(seed)
    learned = learn(conflict.problem, seed=seed, iterations=150)
    assert not learned.fallback
    assert conflict.mean_weight(learned, 2) < 0.5
    wrong = conflict.corrupted
    assert learned.weights[wrong].mean() < learned.weights[~wrong].mean()
    assert rank_correlation(learned.weights, conflict.alignment()) > 0.2
    assert not any("dominates" in note for note in learned.notes)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_raw_products_favour_the_conflict_and_say_so(seed: int) -> None:
    conflict = make_conflict(seed)
    learned = learn(conflict.problem, "gac_faithful", seed=seed, iterations=150)
    assert sum("dominates" in note for note in learned.notes) == 1
    assert conflict.mean_weight(learned, 2) > 1
    assert rank_correlation(learned.weights, conflict.alignment()) < 0


@pytest.mark.parametrize("mode", ["mse", "gac", "gac_faithful"])
def test_however_many_rows_fit_into_memory_the_weights_are_the_same(mode: Mode) -> None:
    problem = make_conflict(0).problem
    whole = learn(problem, mode, iterations=3)
    for rows in (1, 7):
        found = learn(replace(problem, rows_at_once=rows), mode, iterations=3)
        np.testing.assert_allclose(found.weights, whole.weights, rtol=1e-4)
        assert not found.fallback


@pytest.mark.parametrize("mode", ["mse", "gac"])
def test_a_few_iterations_already_point_away_from_the_conflict(mode: Mode) -> None:
    conflict = make_conflict(0)
    learned = learn(conflict.problem, mode)
    assert conflict.mean_weight(learned, 2) < 0.9
    assert conflict.mean_weight(learned, 0) > 1


@pytest.mark.parametrize("mode", ["mse", "gac"])
def test_groups_of_one_distribution_part_far_less_than_groups_in_conflict(mode: Mode) -> None:
    """Not zero: with Adam, what a few rows happen to say moves a logit as fast as a conflict does."""

    def spread(problem: MetaProblem, seed: int) -> float:
        learned = learn(problem, mode, seed=seed, iterations=WeightingSection().polish_iterations)
        return float(np.std([learned.weights[problem.groups_train == k].mean() for k in range(3)]))

    agreeing = [spread(make_agreement(seed), seed) for seed in range(4)]
    opposed = [spread(make_conflict(seed).problem, seed) for seed in range(4)]
    assert np.mean(agreeing) < 0.5 * np.mean(opposed)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_keeps_its_promises(mode: Mode) -> None:
    chosen, iterations = section(mode), 8
    learned = learn(make_conflict(1).problem, mode, iterations=iterations)
    assert learned.mode == mode
    assert not learned.fallback
    assert learned.weights.mean() == pytest.approx(1, rel=1e-9)
    assert chosen.weight_range[0] <= learned.weights.min() <= learned.weights.max() <= chosen.weight_range[1]
    assert np.ptp(learned.weights) > 0.01
    assert set(learned.trace) == {"loss", "cosine", "ratio", "effective"}
    assert all(len(x) == iterations and bool(np.isfinite(x).all()) for x in learned.trace.values())
    assert learned.visits.sum() == iterations * chosen.batch
    assert np.ptp(learned.visits) <= 3


def test_effective_samples_are_kept_by_raising_the_temperature() -> None:
    learned = learn(make_conflict(0).problem, lr=3.0, min_effective=0.9)
    assert effective_samples(learned.weights) == pytest.approx(0.9 * TRAIN, rel=1e-3)
    assert any("temperature" in note for note in learned.notes)


def test_a_very_high_temperature_gives_uniform_weights() -> None:
    learned = learn(make_conflict(0).problem, temperature=1e9)
    assert learned.weights == pytest.approx(1, abs=1e-6)


def test_shared_logits_reach_samples_that_were_never_drawn() -> None:
    conflict = make_conflict(0)
    learned = learn(conflict.problem, iterations=2, batch=12)
    assert np.ptp(learned.weights[learned.visits == 0]) > 1e-3


# ------------------------------------------------------------------------------------------------------ invariances


@pytest.mark.parametrize("mode", MODES)
def test_equal_seeds_give_equal_bits_and_others_do_not(mode: Mode) -> None:
    problem = make_conflict(0).problem
    one, two, other = (learn(problem, mode, seed=seed) for seed in (3, 3, 4))
    assert one.weights.tobytes() == two.weights.tobytes()
    assert one.logits.tobytes() == two.logits.tobytes()
    assert one.weights.tobytes() != other.weights.tobytes()


def permuted(problem: MetaProblem, order: NDArray[np.int64]) -> MetaProblem:
    """Return the problem with training row i being the old row order[i]."""
    return replace(
        problem,
        train_losses=lambda theta, rows: problem.train_losses(theta, order[rows]),
        groups_train=problem.groups_train[order],
    )


@pytest.mark.parametrize("mode", MODES)
def test_permuting_the_samples_permutes_the_weights(mode: Mode) -> None:
    problem = make_conflict(0).problem
    order = np.random.default_rng(0).permutation(TRAIN)
    weights = learn(problem, mode, batch=TRAIN).weights
    assert learn(permuted(problem, order), mode, batch=TRAIN).weights == pytest.approx(
        weights[order], rel=1e-6
    )


@pytest.mark.parametrize("mode", MODES)
def test_duplicates_get_equal_weights(mode: Mode) -> None:
    problem = make_conflict(0).problem
    twice = permuted(problem, np.repeat(np.arange(40), 2))
    weights = learn(twice, mode, batch=1000).weights
    assert np.ptp(weights) > 0.01
    assert weights[::2] == pytest.approx(weights[1::2], rel=1e-9)


def test_a_shift_of_the_starting_logits_changes_nothing() -> None:
    problem = make_conflict(0).problem
    start = np.random.default_rng(0).normal(size=TRAIN) / 10
    one, two = (learn(problem, initial=start + shift) for shift in (0.0, 5.0))
    assert one.weights == pytest.approx(two.weights, rel=1e-9)


def test_returned_logits_reproduce_the_weights() -> None:
    problem = make_conflict(0).problem
    learned = learn(problem, lr=3.0, min_effective=0.9)
    again = learn(problem, iterations=0, min_effective=0.9, initial=learned.logits)
    assert again.weights == pytest.approx(learned.weights, rel=1e-6)


def test_the_scale_of_the_loss_does_not_matter() -> None:
    problem = make_conflict(0).problem
    tiny = replace(
        problem,
        train_losses=lambda theta, rows: 1e-9 * problem.train_losses(theta, rows),
        validation_loss=lambda theta, rows: 1e-9 * problem.validation_loss(theta, rows),
    )
    one, two = (learn(p).weights for p in (problem, tiny))
    assert one == pytest.approx(two, rel=1e-6)


def test_a_metric_is_a_change_of_parameters() -> None:
    problem = make_conflict(0).problem
    renamed = replace(
        problem,
        theta=(problem.theta[0] / 50,),
        train_losses=lambda theta, rows: problem.train_losses((50 * theta[0],), rows),
        validation_loss=lambda theta, rows: problem.validation_loss((50 * theta[0],), rows),
        metric=(1 / 50,),
    )
    one, two = (learn(p).weights for p in (problem, renamed))
    assert one == pytest.approx(two, rel=1e-6)


# -------------------------------------------------------------------------------------------------- what goes wrong


def assert_uniform(learned: LearnedWeights, *, fallback: bool, note: str) -> None:
    assert learned.weights.tolist() == [1.0] * len(learned.weights)
    assert learned.fallback == fallback
    assert any(note in text for text in learned.notes), learned.notes
    assert learned.mode == "uniform" or not fallback


def test_no_samples_is_an_error() -> None:
    problem = replace(make_conflict(0).problem, groups_train=np.zeros(0, dtype=np.int64))
    with pytest.raises(CalibrationError, match="no training samples"):
        learn(problem)


def test_one_sample_has_weight_one() -> None:
    problem = permuted(make_conflict(0).problem, np.zeros(1, dtype=np.int64))
    assert_uniform(learn(problem), fallback=False, note="one training sample")


@pytest.mark.parametrize("mode", MODES)
def test_identical_samples_stay_uniform(mode: Mode) -> None:
    problem = permuted(make_conflict(0).problem, np.zeros(24, dtype=np.int64))
    assert_uniform(learn(problem, mode), fallback=False, note="did not move")


@pytest.mark.parametrize("mode", MODES)
def test_gradients_of_zero_stay_uniform(mode: Mode) -> None:
    problem = make_conflict(0).problem
    still = replace(problem, train_losses=lambda theta, rows: 0 * problem.train_losses(theta, rows))
    assert_uniform(learn(still, mode), fallback=False, note="did not move")


def test_one_timestep_is_enough() -> None:
    problem = replace(make_conflict(0).problem, groups_train=np.zeros(TRAIN, dtype=np.int64))
    learned = learn(problem)
    assert np.ptp(learned.weights) > 0.01


def test_a_validation_loss_of_zero_has_nothing_to_teach() -> None:
    problem = make_conflict(0).problem
    perfect = replace(problem, validation_loss=lambda theta, rows: 0 * problem.validation_loss(theta, rows))
    assert_uniform(learn(perfect), fallback=False, note="is 0 before")


def test_no_validation_samples_falls_back() -> None:
    empty = np.zeros(0, dtype=np.int64)
    for groups in ([], [empty, empty]):
        problem = replace(make_conflict(0).problem, validation_groups=groups)
        assert_uniform(learn(problem), fallback=True, note="no validation samples")


def test_an_empty_group_is_left_out_and_one_group_means_mse() -> None:
    problem = make_conflict(0).problem
    empty = np.zeros(0, dtype=np.int64)
    two = replace(problem, validation_groups=[*problem.validation_groups[:2], empty])
    learned = learn(two)
    assert learned.mode == "gac"
    assert "1 of 3 groups have no validation samples and were left out." in learned.notes
    one = learn(replace(problem, validation_groups=[problem.validation_groups[0], empty]))
    assert one.mode == "mse"
    assert any("'mse' took its place" in note for note in one.notes)
    assert not one.fallback


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_falls_back_and_names_the_iteration(mode: Mode, bad: float) -> None:
    problem = make_conflict(0).problem
    poisoned = (problem.groups_train == 1) & (np.arange(TRAIN) > 120)

    def losses(theta: Vector, rows: NDArray[np.int64]) -> Tensor:
        factor = torch.from_numpy(np.where(poisoned[rows], bad, 1.0))
        return problem.train_losses(theta, rows) * factor

    learned = learn(replace(problem, train_losses=losses), mode)
    assert_uniform(learned, fallback=True, note="not finite")
    assert "iteration" in learned.notes[-1]


def test_a_validation_loss_that_is_not_finite_falls_back() -> None:
    problem = make_conflict(0).problem
    broken = replace(
        problem, validation_loss=lambda theta, rows: problem.validation_loss(theta, rows) * float("nan")
    )
    assert_uniform(learn(broken), fallback=True, note="nan before the first")


def test_a_loop_that_diverges_falls_back() -> None:
    problem = make_conflict(0).problem
    cliff = replace(
        problem,
        validation_loss=lambda theta, rows: (
            problem.validation_loss(theta, rows) * (1 + 1e9 * theta[0].pow(2).mean())
        ),
    )
    assert_uniform(learn(cliff), fallback=True, note="grew from")


def test_an_overshooting_look_ahead_is_shortened() -> None:
    learned = learn(make_conflict(0).problem, look_ahead_rms=30.0)
    assert not learned.fallback
    assert any("look-ahead was shortened" in note for note in learned.notes)


class _Cube(torch.autograd.Function):
    """x^3 with a first derivative and nothing else."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[misc]
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grad


@pytest.mark.parametrize("mode", ["gac", "gac_faithful"])
def test_operators_without_derivative_rules_are_differenced(mode: Mode) -> None:
    problem = make_conflict(0).problem
    start = torch.full_like(problem.theta[0], 0.5)
    cube: Callable[[Tensor], Tensor] = _Cube.apply

    def with_operator(power: Callable[[Tensor], Tensor]) -> MetaProblem:
        return replace(
            problem,
            theta=(start,),
            train_losses=lambda theta, rows: problem.train_losses((power(theta[0]),), rows),
            validation_loss=lambda theta, rows: problem.validation_loss((power(theta[0]),), rows),
        )

    learned = learn(with_operator(cube), mode)
    assert any("finite difference" in note for note in learned.notes)
    expected = learn(with_operator(lambda x: x**3), mode)
    assert learned.weights == pytest.approx(expected.weights, rel=1e-3)


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)


def test_attention_needs_no_care_of_the_caller() -> None:
    torch.manual_seed(0)
    block = _Attention()
    x = torch.randn(60, 5, 8)
    y = block(x).detach() + 0.1 * torch.randn(60, 5, 8)
    names = list(dict(block.named_parameters()))

    def losses(theta: Vector, rows: NDArray[np.int64]) -> Tensor:
        output = functional_call(block, dict(zip(names, theta, strict=True)), (x[rows],))
        return (output - y[rows]).pow(2).flatten(1).sum(1)

    problem = MetaProblem(
        name="attention",
        theta=tuple(p.detach() * 1.1 for p in block.parameters()),
        train_losses=losses,
        validation_loss=lambda theta, rows: losses(theta, rows).mean(),
        groups_train=np.arange(40) % 2,
        validation_groups=[np.arange(40, 50), np.arange(50, 60)],
    )
    learned = learn(problem, iterations=2, look_ahead_rms=1e-2)
    assert not learned.fallback
    assert learned.notes == ()
    assert np.ptp(learned.weights) > 0
