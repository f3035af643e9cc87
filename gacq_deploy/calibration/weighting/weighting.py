"""Where do a stage's sample weights come from? The recipe's mode, a stage's own losses, and the objective, joined."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gacq_deploy.artifact.diagnostics import StageWeights
from gacq_deploy.calibration.weighting.alignment import (
    cosine_matrix,
    mean_direction,
)
from gacq_deploy.calibration.weighting.bounds import bounded_weights
from gacq_deploy.calibration.weighting.differentiation import differentiable_attention, sample_derivatives
from gacq_deploy.calibration.weighting.meta_learning import (
    LearnedWeights,
    MetaProblem,
    RowNumbers,
    learn_weights,
)
from gacq_deploy.calibration.weighting.objective import coefficients, step_means
from gacq_deploy.calibration.weighting.parts import gradient_at
from gacq_deploy.calibration.weighting.sample_weights import SampleWeights, checked_weights, effective_samples
from gacq_deploy.calibration.weighting.vectors import Vector, axpy, zeros_like
from gacq_deploy.models.placement import to_host
from gacq_deploy.recipe.calibration import WeightedStage, WeightingSection
from gacq_deploy.recipe.sections import CalibrationSection
from gacq_deploy.samples.calibration_set import CalibrationSet, timestep_buckets

POLISH: Literal["polish"] = "polish"
_FIXED = ("uniform", "relative")
"""Modes that learn nothing."""
_EQUAL_START = ("uniform", "given", "gac_faithful")
"""Modes that start from equal weights, as the paper does; the others start from those of ``relative``."""
_ALIGNMENT = 0.5
"""Cost of a row's alignment beside a row of a meta iteration; measured on the demo and a small Stable Diffusion."""
Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Split:
    """All samples of a calibration, and which rows are learned from; groups are of timesteps, 0 the noisiest."""

    samples: CalibrationSet
    groups: int

    @cached_property
    def training(self) -> RowNumbers:
        """Rows that are learned from [N]."""
        return np.flatnonzero(self.samples.validation == 0)

    @cached_property
    def held_out(self) -> RowNumbers:
        """Rows of the validation trajectories."""
        return np.flatnonzero(self.samples.validation == 1)

    @property
    def measured(self) -> RowNumbers:
        """Rows on which the output error is measured: the held-out ones, or all if nothing is held out."""
        return self.held_out if len(self.held_out) else np.arange(len(self.samples))

    @cached_property
    def buckets(self) -> RowNumbers:
        """Timestep group of every row."""
        return timestep_buckets(self.samples.timesteps, self.groups)

    @property
    def training_timesteps(self) -> NDArray[np.int64]:
        """Timesteps of the training rows [N]."""
        return self.samples.timesteps[self.training]

    @cached_property
    def validation_groups(self) -> tuple[RowNumbers, ...]:
        """Held-out rows of every group."""
        return tuple(
            self.held_out[self.buckets[self.held_out] == g] for g in range(int(self.buckets.max()) + 1)
        )


@dataclass(frozen=True)
class StageLoss:
    """A stage as a function: ``losses(parameters, rows)`` [B] of rows of all samples, at ``theta`` by default.

    ``metric`` gives one factor for each parameter: about how far it may move, beside the others.
    """

    name: str
    theta: Mapping[str, Tensor]
    losses: Callable[[Mapping[str, Tensor], RowNumbers], Tensor]
    metric: Mapping[str, float] | None = None
    rows_at_once: int | None = None
    """Rows whose graph of second order fits into memory; None: as many as are asked for."""
    advance: Callable[[], None] = lambda: None
    """Called after every meta iteration, and every chunk of rows whose alignments are found."""

    @property
    def vector(self) -> Vector:
        """Current values."""
        return tuple(p.detach() for p in self.theta.values())

    def at(self, theta: Vector, rows: RowNumbers) -> Tensor:
        """Return the losses with the parameters given in order."""
        return self.losses(dict(zip(self.theta, theta, strict=True)), rows)


@dataclass(frozen=True)
class Weighting:
    """The sample weights of one calibration: from the caller, or learned as the recipe says."""

    section: CalibrationSection
    split: Split
    given: SampleWeights | None = None
    too_large: Mapping[WeightedStage, str] = field(default_factory=dict)
    """Stages whose weights are too much to learn, with the reason: they take mode ``relative``."""

    def is_learned(self, stage: WeightedStage) -> bool:
        """Tell whether this kind of stage learns its weights."""
        return self._mode(stage) not in (*_FIXED, "given")

    def iterations(self, stage: WeightedStage) -> int:
        """Return the meta iterations of this kind of stage; 0 where its weights are not learned."""
        section = self.section.weighting
        if not self.is_learned(stage):
            return 0
        return section.polish_iterations if stage == POLISH else section.iterations

    def needs_losses(self, stage: WeightedStage) -> bool:
        """Tell whether the weights depend on how the stage stands."""
        return self._mode(stage) not in ("uniform", "given")

    def start(
        self, stage: WeightedStage, losses: Float64, gains: Mapping[int, float] | None = None
    ) -> Float64:
        """Return the weights to begin with, [N] of mean 1, before those of ``weigh``, from which its learning starts.

        ``losses`` [N] are the training rows'; ``gains`` as for ``weigh``.
        """
        timesteps = self.split.training_timesteps
        if self._mode(stage) in _EQUAL_START:
            return np.ones(len(timesteps))
        cost = self._cost(losses, gains)
        return self._bounded(np.log([cost[int(t)] for t in timesteps]))

    def weigh(
        self,
        stage: WeightedStage,
        loss: StageLoss,
        start: Float64,
        *,
        seed: int,
        gains: Mapping[int, float] | None = None,
        logits: Float64 | None = None,
    ) -> LearnedWeights:
        """Return the weights of one stage.

        Args:
            stage: which kind of stage.
            loss: the stage as a function.
            start: losses of the training rows before the stage [N].
            seed: of the meta iterations' draws.
            gains: timestep -> image error for one unit of output error, where the objective needs it.
            logits: what the stage before learned, beyond its prior [N]; so are the logits returned.
        """
        if self.given is not None:
            return _fixed(checked_weights(self.given, loss.name, self._training), self.given.name)
        first = self.start(stage, start, gains)
        if not self.is_learned(stage):
            notes = (self.too_large[stage],) if self._is_too_large(stage) else ()
            return replace(_fixed(first, self._mode(stage)), notes=notes)
        prior: Float64 = np.log(first)
        if logits is not None:
            prior = prior + logits
        problem = self._problem(loss, self._cost(start, gains))
        learned = learn_weights(problem, self.section.weighting, self.iterations(stage), seed, prior)
        return replace(learned, logits=learned.logits - (np.log(first) - np.log(first).mean()))

    def _cost(self, losses: Float64, gains: Mapping[int, float] | None) -> dict[int, float]:
        return coefficients(self.section.objective, step_means(losses, self.split.training_timesteps), gains)

    def _mode(self, stage: WeightedStage) -> str:
        if self.given is not None:
            return "given"
        if self._is_too_large(stage):
            return "relative"
        section = self.section.weighting
        return section.mode if stage in section.stages else "uniform"

    def _is_too_large(self, stage: WeightedStage) -> bool:
        section = self.section.weighting
        learned = stage in section.stages and section.mode not in _FIXED and self.given is None
        return learned and stage in self.too_large

    @cached_property
    def _training(self) -> CalibrationSet:
        return self.split.samples.rows(self.split.training)

    def _bounded(self, logits: Float64) -> Float64:
        section = self.section.weighting
        return bounded_weights(logits, section.temperature, section.weight_range, section.min_effective)[0]

    def _problem(self, loss: StageLoss, cost: Mapping[int, float]) -> MetaProblem:
        split = self.split
        by_row = torch.tensor([cost.get(int(t), 1.0) for t in split.samples.timesteps])

        def validation(theta: Vector, rows: RowNumbers) -> Tensor:
            values = loss.at(theta, rows)
            return (by_row[torch.from_numpy(rows)].to(values) * values).mean()

        metric = None
        if loss.metric is not None:
            metric = [loss.metric[name] for name in loss.theta]
        return MetaProblem(
            name=loss.name,
            theta=loss.vector,
            train_losses=lambda theta, rows: loss.at(theta, split.training[rows]),
            validation_loss=validation,
            groups_train=split.training_timesteps,
            validation_groups=split.validation_groups,
            metric=metric,
            rows_at_once=loss.rows_at_once,
            advance=loss.advance,
        )


def _fixed(weights: Float64, mode: str) -> LearnedWeights:
    return LearnedWeights(
        weights=weights,
        logits=np.zeros(len(weights)),
        mode=mode,
        fallback=False,
        notes=(),
        trace={},
        visits=np.zeros(len(weights), np.int64),
    )


def group_cosines(loss: StageLoss, split: Split, batch: int) -> NDArray[np.float32] | None:
    """Return the cosines between the groups' validation gradients [G, G], or None without validation rows.

    ``batch`` rows are in memory at once.
    """
    if len(split.held_out) == 0:
        return None
    return cosine_matrix(_group_gradients(loss, split, batch)).numpy().astype(np.float32)


def sample_alignments(loss: StageLoss, split: Split, batch: int) -> NDArray[np.float32] | None:
    """Return g_i . v of every training row [N], v the mean of the groups' unit validation gradients.

    Scaled so that the largest magnitude is 1: the order is what counts.
    """
    if len(split.held_out) == 0:
        return None
    theta = loss.vector
    v = mean_direction(_group_gradients(loss, split, batch))
    parts = []
    with differentiable_attention():
        for first in range(0, len(split.training), batch):
            rows = split.training[first : first + batch]
            parts.append(sample_derivatives(lambda p, r=rows: loss.at(p, r), theta, v))  # type: ignore[misc]
            loss.advance()
    products = torch.cat(parts)
    return to_host(products / products.abs().max().clamp(min=1e-30)).astype(np.float32)


def alignment_cost(section: WeightingSection, rows: int, groups: int) -> float:
    """Return what :func:`sample_alignments` of ``rows`` costs, in meta iterations: both differentiate rows twice."""
    return _ALIGNMENT * rows / (section.batch + section.validation_batch * groups)


def _group_gradients(loss: StageLoss, split: Split, batch: int) -> list[Vector]:
    theta = loss.vector
    gradients = []
    for rows in split.validation_groups:
        total = zeros_like(theta)
        for first in range(0, len(rows), batch):
            part = rows[first : first + batch]
            gradient = gradient_at(lambda p, r=part: loss.at(p, r).mean(), theta)  # type: ignore[misc]
            # a group that fits in one part needs no sum
            whole = len(part) == len(rows)
            total = gradient if whole else axpy(len(part) / len(rows), gradient, total)
        gradients.append(total)
    return gradients


def stage_weights(
    name: str,
    learned: LearnedWeights,
    *,
    alignment: NDArray[np.float32] | None,
    before: NDArray[np.float32] | None,
    after: NDArray[np.float32] | None,
) -> StageWeights:
    """Return what the artifact records of one stage."""
    return StageWeights(
        stage=name,
        mode=learned.mode,
        weights=learned.weights.astype(np.float32),
        alignment=alignment,
        cosine_before=before,
        cosine_after=after,
        effective_samples=effective_samples(learned.weights),
        trace={k: v.astype(np.float32) for k, v in learned.trace.items() if k in ("loss", "cosine", "ratio")},
        notes=learned.notes,
    )
