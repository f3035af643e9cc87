"""How much should each training sample of one stage count? GAC's outer loop (arXiv 2602.01289), reconstructed.

One meta iteration draws a mini-batch and some validation rows of every timestep group, takes one look-ahead step with
the batch's weights, and moves the weights' logits against the gradient of the validation objective there. The
mathematics is in ``alignment``; here are the loop and what keeps it safe: every way of not learning is recorded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gacq_deploy.calibration.weighting.alignment import (
    Differentiation,
    LookAhead,
    MetaGradient,
    automatic_eta,
    exact_meta_gradient,
    look_ahead,
    mse_meta_gradient,
    reparametrised,
    softmax_chain,
    softmax_weights,
    surrogate_meta_gradient,
    weighted_gradient,
)
from gacq_deploy.calibration.weighting.bounds import bounded_weights
from gacq_deploy.calibration.weighting.differentiation import (
    choose_differentiation,
    differentiable_attention,
)
from gacq_deploy.calibration.weighting.minibatches import Deck, stratify
from gacq_deploy.calibration.weighting.parts import InParts, Losses, Pull
from gacq_deploy.calibration.weighting.sample_weights import effective_samples
from gacq_deploy.calibration.weighting.sparse_adam import SparseAdam
from gacq_deploy.calibration.weighting.vectors import Vector, norm
from gacq_deploy.errors import CalibrationError
from gacq_deploy.recipe.calibration import WeightingSection

RowNumbers = NDArray[np.int64]

_DOMINANT = 0.1
"""Ratio of raw gradient matching to validation error beyond which the weights no longer follow the error."""
_DIVERGED = 10.0
_HALVINGS = 8
_SEED_STREAM = 1 << 43
"""Second Philox key of the draws: beyond the numbers of trajectories, apart from a stage's mini-batches."""


@dataclass(frozen=True)
class MetaObjective:
    """What the weights are learned for.

    ``gradient(step, validation, lambda_gm)`` is the objective's gradient in the weights of a batch.
    ``is_raw``: the matching term is made of inner products as they are, which may drown the error: that is noted, not
    limited. ``is_plain``: it holds for a plain look-ahead step alone.
    """

    gradient: Callable[[LookAhead, Sequence[Losses], float], MetaGradient]
    is_raw: bool = False
    is_plain: bool = False


OBJECTIVES: Mapping[str, MetaObjective] = {
    "mse": MetaObjective(lambda step, validation, _lam: mse_meta_gradient(step, validation)),
    "gac": MetaObjective(partial(exact_meta_gradient, normalised=True)),
    "gac_faithful": MetaObjective(
        partial(surrogate_meta_gradient, normalised=False), is_raw=True, is_plain=True
    ),
}
"""By the recipe's ``calibration.weighting.mode``."""


@dataclass(frozen=True)
class MetaProblem:
    """What one stage asks: which weights of its N training rows lower the validation rows' loss?

    ``theta`` are detached current values. ``train_losses(theta, rows)`` gives [B], ``validation_loss(theta, rows)`` a
    scalar, the mean over rows; both must be deterministic. ``groups_train`` [N] is any index of the training rows'
    timesteps: batches are stratified by it, and ``hierarchical`` learns one logit for each. ``validation_groups``
    holds the rows of the groups whose gradients are aligned. ``metric``, one factor > 0 a tensor of ``theta``, makes
    parameters of unlike scale comparable: about how far each may sensibly move.
    """

    name: str
    theta: Vector
    train_losses: Callable[[Vector, RowNumbers], Tensor]
    validation_loss: Callable[[Vector, RowNumbers], Tensor]
    groups_train: RowNumbers
    validation_groups: Sequence[RowNumbers]
    metric: Sequence[float] | None = None
    rows_at_once: int | None = None
    """Rows whose graph of second order fits into memory; None: all that are drawn."""
    advance: Callable[[], None] = lambda: None
    """Called after every meta iteration."""


@dataclass(frozen=True)
class LearnedWeights:
    """The weights of one stage.

    ``weights`` [N] float64 within the range, mean 1; ``logits`` [N] to start the next stage from; ``mode`` what was
    done in the end; ``fallback``: uniform because learning failed, ``notes`` say why. ``trace`` per iteration [K]:
    loss, cosine, ratio, effective (as a share of N); ``visits`` [N] how often a sample was drawn.
    """

    weights: NDArray[np.float64]
    logits: NDArray[np.float64]
    mode: str
    fallback: bool
    notes: tuple[str, ...]
    trace: Mapping[str, NDArray[np.float64]]
    visits: RowNumbers


class _Failed(Exception):
    """Learning cannot go on; the text says why."""


def learn_weights(
    problem: MetaProblem,
    section: WeightingSection,
    iterations: int,
    seed: int,
    initial_logits: NDArray[np.float64] | None = None,
    objective: MetaObjective | None = None,
) -> LearnedWeights:
    """Learn one weight a training sample; equal arguments give equal bits. Failures end in uniform weights, noted.

    Gradients are taken of the loss relative to its value before the first step, for weights of mean 1: the section's
    ``lr`` and ``clip`` need not follow the loss's scale or the batch.

    Args:
        problem: the stage.
        section: how the weights are learned.
        iterations: meta iterations.
        seed: of the draws.
        initial_logits: to start from [N]; equal ones by default.
        objective: by default that of the section's mode.

    Raises:
        CalibrationError: there are no samples.
    """
    count = len(problem.groups_train)
    if count == 0:
        raise CalibrationError(f"Stage '{problem.name}' has no training samples.", "Collect samples first.")
    loop = _Loop(problem, section, objective or OBJECTIVES[section.mode], seed, initial_logits)
    if count == 1:
        loop.notes.append("There is one training sample: its weight is 1.")
        return loop.result()
    try:
        with differentiable_attention():
            loop.run(iterations)
    except _Failed as error:
        loop.notes.append(f"Weights are uniform: {error}")
        return loop.result(fallback=True)
    return loop.result()


@dataclass(frozen=True)
class _Signal:
    """What one meta iteration found: the logits' gradient [B] in relative units, and what is logged."""

    ds: NDArray[np.float64]
    loss: float
    cosine: float
    ratio: float


class _Loop:
    """The state of learning one stage's weights."""

    def __init__(
        self,
        problem: MetaProblem,
        section: WeightingSection,
        objective: MetaObjective,
        seed: int,
        initial: NDArray[np.float64] | None,
    ) -> None:
        self.problem = problem
        self.settings = section
        self.objective = objective
        self.notes: list[str] = []
        self.mode: str = section.mode
        self._count = len(problem.groups_train)
        self._generator = np.random.Generator(np.random.Philox(key=[seed, _SEED_STREAM]))
        _, self._group = np.unique(problem.groups_train, return_inverse=True)
        self._own = np.zeros(self._count) if initial is None else np.array(initial, dtype=np.float64)
        assert self._own.shape == (self._count,)
        assert bool(np.isfinite(self._own).all())
        self._shared = np.zeros(int(self._group.max()) + 1 if self._count else 0)
        self._adam = (SparseAdam(self._count), SparseAdam(len(self._shared)))
        self._train_decks = [Deck(np.flatnonzero(self._group == k)) for k in range(len(self._shared))]
        self._validation_decks = [Deck(np.asarray(rows)) for rows in problem.validation_groups if len(rows)]
        metric = problem.metric or [1.0] * len(problem.theta)
        self._wrap = partial(reparametrised, metric=metric)
        self._phi: Vector = tuple(p.detach() / m for p, m in zip(problem.theta, metric, strict=True))
        self._rms = section.look_ahead_rms
        self._scale = 1.0
        self._how = Differentiation()
        self._moved = False
        self._room = problem.rows_at_once or self._count + sum(map(len, problem.validation_groups))
        self._trace: dict[str, list[float]] = {"loss": [], "cosine": [], "ratio": [], "effective": []}
        self._visits = np.zeros(self._count, dtype=np.int64)

    @property
    def _logits(self) -> NDArray[np.float64]:
        return self._own + self._shared[self._group]

    def run(self, iterations: int) -> None:
        """Run all meta iterations."""
        self._check_groups()
        if not self._prepare():
            self.notes.append("The validation loss is 0 before any step: there is nothing to learn from.")
            return
        for iteration in range(1, iterations + 1):
            index = self._draw()
            self._visits[index] += 1
            self._apply(index, self._signal(index, iteration))
            self.problem.advance()
        if not self._moved:
            self.notes.append(
                "No sample changes the validation loss more than another: the weights did not move."
            )
        self._check_dominance()

    def result(self, *, fallback: bool = False) -> LearnedWeights:
        """Return the weights as they stand, or uniform ones."""
        logits = np.zeros(self._count) if fallback else self._logits
        weights, temperature = np.ones(self._count), self.settings.temperature
        if np.ptp(logits) > 0:
            weights, temperature = self._bounded(logits)
        if temperature > self.settings.temperature:
            self.notes.append(
                f"The softmax's temperature was raised from {self.settings.temperature:g} to {temperature:.3g} to keep "
                f"{self.settings.min_effective:.0%} of the samples effective."
            )
        trace = {name: np.array(values) for name, values in self._trace.items()}
        return LearnedWeights(
            weights=weights,
            # scaled, so that at the section's own temperature they give the same weights
            logits=(logits - logits.mean()) * (self.settings.temperature / temperature),
            mode="uniform" if fallback else self.mode,
            fallback=fallback,
            notes=tuple(self.notes),
            trace=trace,
            visits=self._visits,
        )

    def _bounded(self, logits: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
        chosen = self.settings
        return bounded_weights(logits, chosen.temperature, chosen.weight_range, chosen.min_effective)

    def _check_groups(self) -> None:
        asked, usable = len(self.problem.validation_groups), len(self._validation_decks)
        if usable == 0:
            raise _Failed("there are no validation samples.")
        if usable < asked:
            self.notes.append(
                f"{asked - usable} of {asked} groups have no validation samples and were left out."
            )
        if usable < 2 and self.objective is not OBJECTIVES["mse"]:
            self.notes.append(
                f"Mode '{self.mode}' needs two groups with validation samples: mode 'mse' took its place."
            )
            # one group has no other to agree with
            self.mode, self.objective = "mse", OBJECTIVES["mse"]

    def _draw(self) -> RowNumbers:
        """Return a mini-batch, ascending: all samples if they fit, else stratified over the groups."""
        if self.settings.batch >= self._count:
            return np.arange(self._count)
        sizes = np.bincount(self._group)
        quotas = stratify(sizes, self.settings.batch, self._generator)
        drawn = [d.draw(q, self._generator) for d, q in zip(self._train_decks, quotas, strict=True)]
        return np.sort(np.concatenate(drawn))

    def _validation(self) -> list[Losses]:
        """Return one loss per group, on rows drawn for one iteration."""
        size = self.settings.validation_batch
        rows = [np.sort(deck.draw(size, self._generator)) for deck in self._validation_decks]
        return [self._in_parts(partial(self._validation_on, of=len(r)), r) for r in rows]

    def _validation_on(self, theta: Vector, rows: RowNumbers, of: int) -> Tensor:
        """Return what some rows give to the mean over ``of`` rows."""
        loss = self.problem.validation_loss(theta, rows)
        return loss if len(rows) == of else len(rows) / of * loss

    def _train_on(self, theta: Vector, rows: RowNumbers) -> Tensor:
        return self.problem.train_losses(theta, rows)

    def _train(self, index: RowNumbers) -> Losses:
        return self._in_parts(self._train_on, index)

    def _in_parts(self, losses: Callable[..., Tensor], rows: RowNumbers) -> Losses:
        """Return the losses of so many rows at once as memory holds, in the renamed parameters."""
        parts = [rows[first : first + self._room] for first in range(0, len(rows), self._room)]
        found = [partial(losses, rows=part) for part in parts]
        return self._wrap(found[0] if len(found) == 1 else InParts(tuple(found)))

    def _softmax(self, s: Tensor) -> Tensor:
        return softmax_weights(s, self.settings.temperature).to(self._phi[0])

    def _prepare(self) -> bool:
        """Measure the loss before any step, choose the differentiation and the step's length; False if it is 0."""
        index, validation = self._draw(), self._validation()
        train = self._train(index)
        self._scale = _mean_loss(validation, self._phi)
        if not math.isfinite(self._scale):
            raise _Failed(f"the validation loss is {self._scale} before the first meta iteration.")
        if self._scale == 0:
            return False
        w = self._softmax(torch.from_numpy(self._logits[index]))
        g = weighted_gradient(train, self._phi, w)
        if not math.isfinite(norm(g)):
            raise _Failed("the training gradient is not finite before the first meta iteration.")
        self._choose(LookAhead(train, self._phi, g, 0.0), w, validation[0])
        self._shorten(g, validation)
        return True

    def _choose(self, step: LookAhead, w: Tensor, validation: Losses) -> None:
        choice = choose_differentiation(step, w, validation)
        if choice is None:
            raise _Failed(
                "no way of differentiating the losses along a direction agrees with their gradient."
            )
        self._how = choice.how
        self.notes.extend(choice.notes)

    def _shorten(self, g: Vector, validation: Sequence[Losses]) -> None:
        """Halve the look-ahead while it overshoots: beyond the minimum, samples that oppose a step look helpful.

        If no length lowers the loss, the direction is at fault, and only a step that doubles it is too long.
        """
        lengths = [self._rms / 2**k for k in range(_HALVINGS + 1)]
        found = []
        for length in lengths:
            ahead = look_ahead(self._phi, g, automatic_eta(g, length))
            found.append(_mean_loss(validation, ahead) / self._scale)
            if found[-1] <= 1:
                break
        bound = 1.0 if found[-1] <= 1 else 2.0
        self._rms = next((r for r, x in zip(lengths, found, strict=False) if x <= bound), lengths[-1])
        if self._rms < self.settings.look_ahead_rms:
            self.notes.append(
                f"The look-ahead was shortened from rms {self.settings.look_ahead_rms:g} to {self._rms:.3g}: a longer "
                "step raises the validation loss."
            )

    def _signal(self, index: RowNumbers, iteration: int) -> _Signal:
        """Return the gradient of the objective in the batch's logits.

        Raises:
            _Failed: it is not finite, or the loss has grown beyond bounds.
        """
        s = torch.from_numpy(self._logits[index])
        train, validation = self._train(index), self._validation()
        step = self._step(train, self._softmax(s))
        found = self.objective.gradient(step, validation, self.settings.lambda_gm)
        mse, gm = (self._relative(dw, s) for dw in (found.dw_mse, found.dw_gm))
        ratio = _ratio(gm, mse)
        limit = math.inf if self.objective.is_raw else self.settings.matching_limit
        ds = self._relative(found.dw, s) if ratio <= limit else mse + (limit / ratio) * gm
        signal = _Signal(ds, float(found.losses.mean()), found.mean_cosine, ratio)
        if not (math.isfinite(signal.loss) and bool(np.isfinite(signal.ds).all())):
            raise _Failed(
                f"loss or gradient is not finite at meta iteration {iteration} (loss {signal.loss:g})."
            )
        if signal.loss > _DIVERGED * self._scale:
            raise _Failed(
                f"the validation loss grew from {self._scale:.3g} to {signal.loss:.3g} at meta iteration {iteration}."
            )
        return signal

    def _step(self, train: Losses, w: Tensor) -> LookAhead:
        unit = self.settings.look_ahead == "unit" and not self.objective.is_plain
        held = sum(min(self.settings.validation_batch, len(rows)) for rows in self.problem.validation_groups)
        pull = None
        if self._how.directional == "double_backward" and held + len(w) <= self._room:
            pull = Pull.of(train, self._phi, w)
            g = tuple(x.detach() for x in pull.gradient)
        else:
            g = weighted_gradient(train, self._phi, w)
        eta = automatic_eta(g, self._rms)
        return LookAhead(train, self._phi, g, eta, self._how, unit, pull, together=held <= self._room)

    def _relative(self, dw: Tensor, s: Tensor) -> NDArray[np.float64]:
        """Return the logits' gradient of the relative loss, for weights of mean 1; 0 where rounding is all there is."""
        w = softmax_weights(s, self.settings.temperature)
        exact = dw.double().cpu()
        spread = float((exact - (w * exact).sum()).abs().max())
        if spread <= 64 * torch.finfo(dw.dtype).eps * float(exact.abs().max()):
            return np.zeros(len(s))
        ds: NDArray[np.float64] = softmax_chain(exact, w, self.settings.temperature).numpy()
        return ds * (len(s) / self._scale)

    def _clipped(self, ds: NDArray[np.float64]) -> NDArray[np.float64]:
        return ds * min(1.0, self.settings.clip / max(float(np.linalg.norm(ds)), 1e-30))

    def _apply(self, index: RowNumbers, signal: _Signal) -> None:
        """Log the iteration and move the logits of the visited samples."""
        ds = self._clipped(signal.ds)
        if ds.any():
            self._moved = True
            self._adam[0].step(self._own, index, ds, self.settings.lr)
            # one logit a timestep beside one a sample: every sample of a timestep learns from each visit
            visited = np.unique(self._group[index])
            sums: NDArray[np.float64] = np.bincount(self._group[index], weights=ds)[visited].astype(float)
            self._adam[1].step(self._shared, visited, sums, self.settings.lr)
        scaled = self._logits / self.settings.temperature
        effective = effective_samples(np.exp(scaled - scaled.max())) / self._count
        for name, value in (("loss", signal.loss), ("cosine", signal.cosine), ("ratio", signal.ratio)):
            self._trace[name].append(value)
        self._trace["effective"].append(effective)

    def _check_dominance(self) -> None:
        """Note raw gradient matching that drowns the validation error."""
        ratios = self._trace["ratio"]
        if not self.objective.is_raw or not ratios or max(ratios) <= _DOMINANT:
            return
        worst = int(np.argmax(ratios))
        self.notes.append(
            f"Raw gradient matching dominates: at meta iteration {worst + 1} its gradient is {ratios[worst]:.3g} times "
            f"that of the validation error (bound {_DOMINANT:g}). The weights may favour conflicting samples."
        )


def _mean_loss(validation: Sequence[Losses], theta: Vector) -> float:
    with torch.no_grad():
        return float(torch.stack([loss(theta) for loss in validation]).double().mean())


def _ratio(gm: NDArray[np.float64], mse: NDArray[np.float64]) -> float:
    """Return ||gm|| / ||mse||, at most 1e9."""
    matching, error = float(np.linalg.norm(gm)), float(np.linalg.norm(mse))
    return matching / max(error, 1e-9 * matching) if matching > 0 else 0.0
