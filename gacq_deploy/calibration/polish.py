"""What do scales, biases and norms gain from being trained together, on the model's own output?

Block reconstruction leaves each block's error to the next. The polish keeps the rounding and trains, for a few hundred
steps, the numbers that cost nothing at run time. Interrupted, it goes on from its last saved state, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gacq_deploy.artifact import PolishRecord
from gacq_deploy.calibration.blocks import pack_weights, unpack_weights
from gacq_deploy.calibration.journal import Journal, scalar
from gacq_deploy.calibration.objective import trajectory_gains
from gacq_deploy.calibration.output_error import output_loss, output_losses
from gacq_deploy.calibration.session import Session
from gacq_deploy.calibration.weighting import (
    POLISH,
    StageLoss,
    group_cosines,
    sample_alignments,
    stage_weights,
)
from gacq_deploy.calibration.weights import effective_samples
from gacq_deploy.diagnostics import StageWeights
from gacq_deploy.errors import CalibrationError
from gacq_deploy.quant.layers import QuantizedLayer
from gacq_deploy.quant.trainable import Trainables, make_trainable
from gacq_deploy.recipe import PolishSection
from gacq_deploy.storage import Array

_FINAL = "polished"
_WEIGHTS = "polish-weights"
_LAST_RATE = 0.05
"""Share of the learning rate that is left at the end of the cosine."""
_SEED_STREAM = 1 << 44


@dataclass(frozen=True)
class PolishOutcome:
    """What the polish did: its record, its sample weights, and the float parameters it changed, by name."""

    record: PolishRecord
    stage: StageWeights
    parameters: Mapping[str, Tensor]


def ensure_polish(
    session: Session, journal: Journal, layers: Mapping[str, QuantizedLayer]
) -> PolishOutcome | None:
    """Load the finished polish, go on with a begun one, or do it; the model takes the learned values.

    Raises:
        CalibrationError: the loss is not finite; the blocks and the last saved state are kept.
    """
    section = session.recipe.calibration.polish
    if section.steps == 0:
        return None
    trainables = make_trainable(session.denoiser.module, layers, section.parameters)
    if not trainables.parameters:
        raise CalibrationError(
            f"The polish has nothing to train: no {' or '.join(section.parameters)} in this model.",
            "Name other calibration.polish.parameters, or set calibration.polish.steps to 0.",
        )
    loss = StageLoss(
        POLISH, trainables.parameters, output_loss(session.denoiser, session.split.samples), None
    )
    step = journal.get(_FINAL)
    if step is None:
        step = _polish(session, journal, trainables, loss)
        journal.put(_FINAL, step)
    session.report.stage("polish", section.steps)
    session.report.advance(section.steps, loss=float(step["loss_end"]))
    trainables.load({name: torch.from_numpy(step[f"value:{name}"]) for name in trainables.parameters})
    retrained = {name: value.clone() for name, value in trainables.retrained().items()}
    trainables.freeze()
    return _outcome(session, step, retrained)


def _outcome(session: Session, step: Mapping[str, Array], retrained: Mapping[str, Tensor]) -> PolishOutcome:
    learned = unpack_weights(step)
    calibration = session.recipe.calibration
    record = PolishRecord(
        steps=calibration.polish.steps,
        loss_start=float(step["loss_start"]),
        loss_end=float(step["loss_end"]),
        kept=bool(step["kept"]),
        parameters=calibration.polish.parameters,
        objective=calibration.objective,
        effective_samples=effective_samples(learned.weights),
        notes=learned.notes,
    )
    stage = stage_weights(
        POLISH,
        learned,
        alignment=step.get("alignment"),
        before=step.get("cosine_before"),
        after=step.get("cosine_after"),
    )
    return PolishOutcome(record, stage, retrained)


def _polish(session: Session, journal: Journal, trainables: Trainables, loss: StageLoss) -> dict[str, Array]:
    begun = journal.get(_WEIGHTS)
    if begun is None:
        begun = _weigh(session, loss)
        journal.put(_WEIGHTS, begun)
    weights = unpack_weights(begun).weights
    start = float(begun["loss_start"])
    first = trainables.values()
    _train(session, journal, trainables, weights, start)
    end = _mean_loss(session, weights)
    kept = end <= start
    if not kept:
        trainables.load(first)
        session.report.note(f"the polish was undone: its loss rose from {start:.4g} to {end:.4g}")
    cosines = group_cosines(loss, session.split)
    return {
        **begun,
        "loss_end": scalar(end if kept else start),
        "kept": scalar(float(kept)),
        **({} if cosines is None else {"cosine_after": cosines}),
        **{f"value:{name}": value.numpy() for name, value in trainables.values().items()},
    }


def _weigh(session: Session, loss: StageLoss) -> dict[str, Array]:
    """Learn the weights of the polish, and note how the gradients lie before it."""
    recipe, split = session.recipe, session.split
    seed = recipe.calibration.seed * 100_003 + len(session.graph.blocks)
    losses = output_losses(session.denoiser, split.samples, split.training, session.chunk)
    gains = None
    weighting = session.weighting
    if recipe.calibration.objective == "images" and recipe.calibration.weighting.mode != "uniform":
        gains = trajectory_gains(session.denoiser, recipe.samples.steps, seed)
    compared = StageLoss(loss.name, loss.theta, loss.losses, _metric(session, loss))
    learned = weighting.weigh(POLISH, compared, losses, seed=seed, gains=gains)
    found: dict[str, Array | None] = {"cosine_before": group_cosines(loss, split)}
    if weighting.is_learned(POLISH):
        found["alignment"] = sample_alignments(compared, split, session.chunk)
    return {
        "loss_start": scalar(float((learned.weights * losses).mean())),
        **pack_weights(learned),
        **{name: value for name, value in found.items() if value is not None},
    }


def _metric(session: Session, loss: StageLoss) -> dict[str, float]:
    """Return how far each parameter may move: Adam's steps are as long for every one, whatever its gradient."""
    rows = session.split.training
    chosen = rows[np.linspace(0, len(rows) - 1, min(64, len(rows))).round().astype(int)]
    values = loss.losses({}, chosen)
    gradients = torch.autograd.grad(values.mean(), list(loss.theta.values()), materialize_grads=True)
    sizes = np.array([float(g.double().pow(2).mean().sqrt()) for g in gradients])
    typical = float(np.median(sizes[sizes > 0])) if bool((sizes > 0).any()) else 1.0
    return {
        name: math.sqrt(typical / max(size, 1e-3 * typical))
        for name, size in zip(loss.theta, sizes, strict=True)
    }


def _train(
    session: Session,
    journal: Journal,
    trainables: Trainables,
    weights: NDArray[np.float64],
    scale: float,
) -> None:
    section = session.recipe.calibration.polish
    parameters = list(trainables.parameters.values())
    optimizer = torch.optim.Adam(parameters, lr=section.lr)
    done = _resume(journal, trainables, optimizer, section)
    session.report.stage("polish", section.steps)
    if done:
        session.report.advance(done)
    batches = _Batches(session, weights, scale)
    for step in range(done, section.steps):
        for group in optimizer.param_groups:
            group["lr"] = _rate(section, step)
        optimizer.zero_grad()
        value = batches.backward(step)
        if not math.isfinite(value):
            raise CalibrationError(
                f"Polish: the loss is {value} at step {step + 1} of {section.steps}. The blocks are kept.",
                "Lower calibration.polish.lr; the same command with the old value resumes at the last saved state.",
            )
        optimizer.step()
        session.report.advance(loss=value * scale)
        if (step + 1) % section.save_every == 0 and step + 1 < section.steps:
            journal.put(_state_name(step + 1), _state(trainables, optimizer))


def _rate(section: PolishSection, step: int) -> float:
    return section.lr * (_LAST_RATE + (1 - _LAST_RATE) * 0.5 * (1 + math.cos(math.pi * step / section.steps)))


class _Batches:
    """Draws step k's rows from k alone, so that a resumed run draws the same; small passes if memory asks for it."""

    def __init__(self, session: Session, weights: NDArray[np.float64], scale: float) -> None:
        self._losses = output_loss(session.denoiser, session.split.samples)
        self._rows = session.split.training
        self._weights = weights
        self._scale = max(scale, 1e-30)
        self._seed = session.recipe.calibration.seed
        self._size = min(session.recipe.calibration.polish.batch, len(self._rows))
        self._chunk = session.chunk

    def backward(self, step: int) -> float:
        """Add the gradient of one mini-batch's weighted loss, relative to the loss at the start; return it."""
        generator = np.random.Generator(np.random.Philox(key=[self._seed, _SEED_STREAM + step]))
        index = np.sort(generator.choice(len(self._rows), self._size, replace=False))
        total = 0.0
        for part in self._parts(index):
            weights = torch.from_numpy(self._weights[part]).float()
            loss = (weights * self._losses({}, self._rows[part])).sum() / (self._size * self._scale)
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return total

    def _parts(self, index: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        for first in range(0, len(index), self._chunk):
            yield index[first : first + self._chunk]


def _mean_loss(session: Session, weights: NDArray[np.float64]) -> float:
    losses = output_losses(session.denoiser, session.split.samples, session.split.training, session.chunk)
    return float((weights * losses).mean())


def _state_name(step: int) -> str:
    return f"polish-{step:05d}"


def _state(trainables: Trainables, optimizer: torch.optim.Adam) -> dict[str, Array]:
    """Return values and Adam's moments, all that the next step depends on."""
    state: dict[str, Array] = {}
    for name, parameter in trainables.parameters.items():
        moments = optimizer.state[parameter]
        state[f"value:{name}"] = parameter.detach().numpy().copy()
        state[f"mean:{name}"] = moments["exp_avg"].numpy().copy()
        state[f"square:{name}"] = moments["exp_avg_sq"].numpy().copy()
    return state


def _resume(
    journal: Journal, trainables: Trainables, optimizer: torch.optim.Adam, section: PolishSection
) -> int:
    """Take up the last saved state; return its step, 0 if there is none."""
    saved = [
        s
        for s in range(section.save_every, section.steps, section.save_every)
        if _state_name(s) in journal.steps
    ]
    if not saved:
        return 0
    state = journal.get(_state_name(saved[-1]))
    assert state is not None
    trainables.load({name: torch.from_numpy(state[f"value:{name}"]) for name in trainables.parameters})
    for name, parameter in trainables.parameters.items():
        optimizer.state[parameter] = {
            "step": torch.tensor(float(saved[-1])),
            "exp_avg": torch.from_numpy(state[f"mean:{name}"]).reshape(parameter.shape),
            "exp_avg_sq": torch.from_numpy(state[f"square:{name}"]).reshape(parameter.shape),
        }
    return saved[-1]
