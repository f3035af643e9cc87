"""What do scales, biases and norms gain from being trained together, on the model's own output?

Block reconstruction leaves each block's error to the next. The polish keeps the rounding and trains, for a few hundred
steps, the numbers that cost nothing at run time. Interrupted, it goes on from its last saved state, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gacq_deploy.artifact.diagnostics import StageWeights, mean_between_groups
from gacq_deploy.artifact.records import PolishRecord
from gacq_deploy.calibration.blocks import pack_weights, unpack_weights
from gacq_deploy.calibration.checkpoint import Checkpoint, scalar
from gacq_deploy.calibration.output_error import output_loss, output_losses
from gacq_deploy.calibration.session import Session
from gacq_deploy.calibration.weighting.objective import (
    TRAJECTORIES,
    gain_passes,
    nearest_gains,
    trajectory_gains,
)
from gacq_deploy.calibration.weighting.sample_weights import effective_samples
from gacq_deploy.calibration.weighting.weighting import (
    POLISH,
    StageLoss,
    alignment_cost,
    group_cosines,
    sample_alignments,
    stage_weights,
)
from gacq_deploy.errors import CalibrationError
from gacq_deploy.models.placement import to_host, to_tensor
from gacq_deploy.quant.layers import QuantizedLayer
from gacq_deploy.quant.trainable import Trainables, make_trainable
from gacq_deploy.recipe.calibration import PolishSection
from gacq_deploy.spec import Array

_FINAL = "polished"
START, WARM = "measure before the polish", "polish before weighting"
WEIGH, POLISH_STAGE = "weigh samples for the polish", "polish"
"""The stages, as they are announced."""
_START = "polish-start"
_WEIGHTS = "polish-weights"
_GRADIENT = 3.0
"""Forward passes that a gradient costs."""
_LAST_RATE = 0.05
"""Share of the learning rate that is left at the end of the cosine."""
_SEED_STREAM = 1 << 44
"""Second Philox key of the mini-batches, plus the step: beyond the numbers of trajectories, apart from other draws."""


@dataclass(frozen=True)
class PolishOutcome:
    """What the polish did: its record, its sample weights, and the float parameters it changed, by name."""

    record: PolishRecord
    stage: StageWeights
    parameters: Mapping[str, Tensor]


def ensure_polish(
    session: Session,
    checkpoint: Checkpoint,
    layers: Mapping[str, QuantizedLayer],
    is_good: Callable[[], bool],
) -> PolishOutcome | None:
    """Load the finished polish, go on with a begun one, or do it; the model takes the learned values if it is good.

    ``is_good`` judges the model as it then stands; what it refuses is undone.

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
    losses = _output_loss(session)
    loss = StageLoss(
        POLISH,
        trainables.parameters,
        losses,
        rows_at_once=session.second_order_rows,
        advance=session.report.advance,
    )
    first = trainables.values()
    step = checkpoint.get(_FINAL)
    if step is None:
        step = _polish(session, checkpoint, trainables, loss)
        checkpoint.put(_FINAL, step)
    trainables.load({name: torch.from_numpy(step[f"value:{name}"]) for name in trainables.parameters})
    if not is_good():
        trainables.load(first)
        step = {**step, "loss_end": step["loss_start"], "kept": scalar(0.0)}
    retrained = {name: value.clone() for name, value in trainables.retrained().items()}
    trainables.freeze()
    return _outcome(session, step, retrained)


def _output_loss(session: Session) -> Callable[[Mapping[str, Tensor], NDArray[np.int64]], Tensor]:
    checkpoints: list[str] = []
    if session.is_checkpointed:
        checkpoints = [block.name for block in session.graph.blocks]
    return output_loss(session.denoiser, session.split.samples, checkpoints)


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


def _polish(
    session: Session, checkpoint: Checkpoint, trainables: Trainables, loss: StageLoss
) -> dict[str, Array]:
    section = session.recipe.calibration.polish
    begun = checkpoint.get(_START)
    if begun is None:
        begun = _measure_start(session, loss)
        checkpoint.put(_START, begun)
    start = begun["losses"]
    gains = dict(zip(begun["gain_steps"].tolist(), begun["gains"].tolist(), strict=True)) or None
    first = trainables.values()
    loop = _Loop(session, checkpoint, trainables, float(start.mean()))
    weighting = session.weighting
    warm = round(section.warmup * section.steps) if weighting.is_learned(POLISH) else 0
    loop.train(warm, weighting.start(POLISH, start, gains), WARM)
    weighed = checkpoint.get(_WEIGHTS)
    if weighed is None:
        costs = _weighing_costs(session)
        session.report.stage(WEIGH, len(costs), costs)
        weighed = _weigh(session, loss, start, gains)
        checkpoint.put(_WEIGHTS, weighed)
        session.report.advance(1, **_shown({**begun, **weighed}))
    weights = unpack_weights(weighed).weights
    loop.train(section.steps, weights, POLISH_STAGE, _measuring_costs(session))
    ends = _losses(session)
    loss_start, loss_end = float((weights * start).mean()), float((weights * ends).mean())
    kept = loss_end <= loss_start
    if not kept:
        trainables.load(first)
        session.report.note(f"the polish was undone: its loss rose from {loss_start:.4g} to {loss_end:.4g}")
        loss_end = loss_start
    step = {
        **weighed,
        "loss_start": scalar(loss_start),
        "loss_end": scalar(loss_end),
        "kept": scalar(float(kept)),
        **{f"value:{name}": to_host(value) for name, value in trainables.values().items()},
    }
    if "cosine_before" in begun:
        step["cosine_before"] = begun["cosine_before"]
    cosines = _cosines(session, loss)
    if cosines is not None:
        step["cosine_after"] = cosines
    return step


def _weighing_costs(session: Session) -> list[float]:
    """Return the cost of each unit of weighing: meta iterations, how the samples' gradients lie, and what is kept.

    What is tried out before the first iteration costs one and a half.
    """
    section, split = session.recipe.calibration.weighting, session.split
    iterations = [1.0] * session.weighting.iterations(POLISH)
    if not iterations:
        return [1.0]
    costs = [2.5, *iterations[1:]]
    if len(split.held_out):
        rows = len(split.training)
        chunks = -(-rows // session.graph_chunk)
        costs += [alignment_cost(section, rows, len(split.validation_groups)) / chunks] * chunks
    return [*costs, 0.0]


def _measuring_costs(session: Session) -> list[float]:
    """Return the cost of each unit of :func:`_losses` and :func:`_cosines`, in rows."""
    split, chunk = session.split, session.chunk
    return [*[float(chunk)] * -(-len(split.training) // chunk), _GRADIENT * len(split.held_out)]


def _losses(session: Session) -> NDArray[np.float64]:
    """Return the training rows' losses as the model now stands [N]."""
    split = session.split
    return output_losses(
        session.denoiser, split.samples, split.training, session.chunk, session.report.advance
    )


def _cosines(session: Session, loss: StageLoss) -> NDArray[np.float32] | None:
    """Return the cosines between the groups' gradients as the model now stands."""
    cosines = group_cosines(loss, session.split, session.graph_chunk)
    session.report.advance()
    return cosines


def _measure_start(session: Session, loss: StageLoss) -> dict[str, Array]:
    """Return what stands before the first step: the training rows' losses, the gradients' cosines, the gains."""
    recipe, split = session.recipe, session.split
    needs_gains = recipe.calibration.objective == "images" and session.weighting.needs_losses(POLISH)
    passes = [float(TRAJECTORIES)] * gain_passes(recipe.samples.steps) if needs_gains else []
    costs = [*_measuring_costs(session), *passes]
    session.report.stage(START, len(costs), costs)
    losses, cosines = _losses(session), _cosines(session, loss)
    gains: dict[int, float] = {}
    if needs_gains:
        conditions = session.trajectories.conditions()
        gains = trajectory_gains(
            session.denoiser,
            recipe.samples.steps,
            recipe.calibration.seed,
            conditions,
            session.report.advance,
        )
        if conditions is not None:
            gains = nearest_gains(gains, np.unique(split.samples.timesteps).tolist())
    return {
        "losses": losses,
        "gain_steps": np.array(list(gains), np.int64),
        "gains": np.array(list(gains.values()), np.float64),
        **({} if cosines is None else {"cosine_before": cosines}),
    }


def _weigh(
    session: Session, loss: StageLoss, start: NDArray[np.float64], gains: Mapping[int, float] | None
) -> dict[str, Array]:
    """Learn the weights of the polish on the model as it now stands; ``start`` are the losses [N] it began with."""
    split, weighting = session.split, session.weighting
    seed = session.recipe.calibration.seed * 100_003 + len(session.graph.blocks)
    is_learned = weighting.is_learned(POLISH)
    compared = replace(loss, metric=_metric(session, loss)) if is_learned else loss
    learned = weighting.weigh(POLISH, compared, start, seed=seed, gains=gains)
    if learned.fallback:
        session.report.note(f"{POLISH}: {' '.join(learned.notes)}")
    alignment = sample_alignments(compared, split, session.graph_chunk) if is_learned else None
    return {**pack_weights(learned), **({} if alignment is None else {"alignment": alignment})}


def _shown(begun: Mapping[str, Array]) -> dict[str, float]:
    """Return what a user wants to see of the weights while she waits."""
    values = {"effective": effective_samples(begun["weights"])}
    if "cosine_before" in begun:
        values["alignment"] = mean_between_groups(begun["cosine_before"])
    return values


def _metric(session: Session, loss: StageLoss) -> dict[str, float]:
    """Return how far each parameter may move: Adam's steps are as long for every one, whatever its gradient."""
    rows = session.split.training
    chosen = rows[np.linspace(0, len(rows) - 1, min(session.graph_chunk, len(rows))).round().astype(int)]
    values = loss.losses({}, chosen)
    gradients = torch.autograd.grad(values.mean(), list(loss.theta.values()), materialize_grads=True)
    sizes = to_host(torch.stack([g.double().pow(2).mean().sqrt() for g in gradients]))
    typical = float(np.median(sizes[sizes > 0])) if bool((sizes > 0).any()) else 1.0
    # bounded: a parameter with next to no gradient moves some thirty times as far as a typical one, not without end
    return {
        name: math.sqrt(typical / max(size, 1e-3 * typical))
        for name, size in zip(loss.theta, sizes, strict=True)
    }


class _Loop:
    """Adam on the whole model, from the last saved state on; ``scale`` is the loss at the start, the unit of losses."""

    def __init__(
        self, session: Session, checkpoint: Checkpoint, trainables: Trainables, scale: float
    ) -> None:
        self._session = session
        self._checkpoint = checkpoint
        self._trainables = trainables
        self._section = session.recipe.calibration.polish
        self._optimizer = torch.optim.Adam(list(trainables.parameters.values()), lr=self._section.lr)
        self._scale = max(scale, 1e-30)
        self._done = _resume(checkpoint, trainables, self._optimizer, self._section)

    def train(self, until: int, weights: NDArray[np.float64], name: str, then: Sequence[float] = ()) -> None:
        """Take the steps that are missing up to step ``until``; ``then``: the costs of what ends the stage, in rows.

        Raises:
            CalibrationError: the loss is not finite.
        """
        if self._done >= until and not then:
            return
        report = self._session.report
        costs = [*[_GRADIENT * self._section.batch] * (until - self._done), *then]
        report.stage(name, len(costs), costs)
        batches = _Batches(self._session, weights, self._scale)
        for step in range(self._done, until):
            self._step(step, batches)
            self._done = step + 1
            report.advance(loss=self._value * self._scale)
            # what the last step leaves is saved with the whole result
            if self._done % self._section.save_every == 0 and self._done < self._section.steps:
                self._checkpoint.put(_state_name(self._done), _state(self._trainables, self._optimizer))

    def _step(self, step: int, batches: _Batches) -> None:
        # from the step alone, so that a resumed run takes the same
        for group in self._optimizer.param_groups:
            group["lr"] = _rate(self._section, step)
        self._optimizer.zero_grad()
        self._value = batches.backward(step)
        if not math.isfinite(self._value):
            raise CalibrationError(
                f"Polish: the loss is {self._value} at step {step + 1} of {self._section.steps}. The blocks are kept.",
                "Lower calibration.polish.lr; the same command with the old value resumes at the last saved state.",
            )
        self._optimizer.step()


def _rate(section: PolishSection, step: int) -> float:
    return section.lr * (_LAST_RATE + (1 - _LAST_RATE) * 0.5 * (1 + math.cos(math.pi * step / section.steps)))


class _Batches:
    """Draws step k's rows from k alone, so that a resumed run draws the same; small passes if memory asks for it."""

    def __init__(self, session: Session, weights: NDArray[np.float64], scale: float) -> None:
        self._losses = _output_loss(session)
        self._rows = session.split.training
        self._weights = weights
        self._scale = scale
        self._seed = session.recipe.calibration.seed
        self._size = min(session.recipe.calibration.polish.batch, len(self._rows))
        self._chunk = session.graph_chunk
        self._device = session.denoiser.device

    def backward(self, step: int) -> float:
        """Add the gradient of one mini-batch's weighted loss, relative to the loss at the start; return it."""
        generator = np.random.Generator(np.random.Philox(key=[self._seed, _SEED_STREAM + step]))
        index = np.sort(generator.choice(len(self._rows), self._size, replace=False))
        total = torch.zeros((), device=self._device)
        for part in self._parts(index):
            weights = to_tensor(self._weights[part], self._device).float()
            loss = (weights * self._losses({}, self._rows[part])).sum() / (self._size * self._scale)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return float(total)

    def _parts(self, index: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        for first in range(0, len(index), self._chunk):
            yield index[first : first + self._chunk]


def _state_name(step: int) -> str:
    return f"polish-{step:05d}"


def _state(trainables: Trainables, optimizer: torch.optim.Adam) -> dict[str, Array]:
    """Return values and Adam's moments, all that the next step depends on."""
    state: dict[str, Array] = {}
    for name, parameter in trainables.parameters.items():
        state[f"value:{name}"] = to_host(parameter.detach()).copy()
        moments = optimizer.state.get(parameter)
        if moments:  # none where the output does not depend on the parameter
            state[f"mean:{name}"] = to_host(moments["exp_avg"]).copy()
            state[f"square:{name}"] = to_host(moments["exp_avg_sq"]).copy()
    return state


def _resume(
    checkpoint: Checkpoint, trainables: Trainables, optimizer: torch.optim.Adam, section: PolishSection
) -> int:
    """Take up the last saved state; return its step, 0 if there is none."""
    saved = [
        s
        for s in range(section.save_every, section.steps, section.save_every)
        if _state_name(s) in checkpoint.steps
    ]
    if not saved:
        return 0
    state = checkpoint.get(_state_name(saved[-1]))
    assert state is not None
    trainables.load({name: torch.from_numpy(state[f"value:{name}"]) for name in trainables.parameters})
    for name, parameter in trainables.parameters.items():
        if f"mean:{name}" not in state:
            continue
        optimizer.state[parameter] = {
            # Adam corrects the bias of its moments by the steps taken
            "step": torch.tensor(float(saved[-1])),
            "exp_avg": _like(parameter, state[f"mean:{name}"]),
            "exp_avg_sq": _like(parameter, state[f"square:{name}"]),
        }
    return saved[-1]


def _like(parameter: Tensor, saved: Array) -> Tensor:
    return torch.from_numpy(saved).reshape(parameter.shape).to(parameter.device)
