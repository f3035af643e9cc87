"""Which blocks are learned, in which order, and what of them is kept? Weights first, then rounding and scales."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gacq_deploy.artifact.diagnostics import StageWeights, mean_between_groups
from gacq_deploy.artifact.records import BlockRecord
from gacq_deploy.calibration.checkpoint import Checkpoint, scalar
from gacq_deploy.calibration.reconstruction import (
    BlockTask,
    ReconstructionResult,
    begin_rounding,
    block_loss,
    reconstruct_block,
    sample_losses,
)
from gacq_deploy.calibration.replay import BlockData, Replay, time_blocks
from gacq_deploy.calibration.session import Session
from gacq_deploy.calibration.weighting.meta_learning import LearnedWeights
from gacq_deploy.calibration.weighting.sample_weights import effective_samples
from gacq_deploy.calibration.weighting.weighting import (
    StageLoss,
    group_cosines,
    stage_weights,
)
from gacq_deploy.errors import RESTORE, ArtifactError
from gacq_deploy.models.placement import to_host
from gacq_deploy.models.structure.graph import Block
from gacq_deploy.quant.layers import ActivationQuantizer, QuantizedLayer, input_quantizers
from gacq_deploy.quant.trainable import free_weights
from gacq_deploy.spec import Array
from gacq_deploy.storage.documents import Malformed, decode_json
from gacq_deploy.storage.records import Record, as_record

RECONSTRUCT = "reconstruct blocks"
"""The stage, as it is announced."""
_SCALE_METRIC = 0.1
"""How far a log scale may move beside a rounding logit, in a look-ahead step."""


@dataclass(frozen=True)
class BlocksOutcome:
    """What happened in every reconstructed block, and what its sample weights were."""

    history: tuple[BlockRecord, ...]
    stages: tuple[StageWeights, ...]

    def undone(self) -> BlocksOutcome:
        """Return what is to be recorded where the layers were given back their nearest rounding."""
        history = (
            block.model_copy(update={"loss_end": block.loss_start, "kept": False}) for block in self.history
        )
        return BlocksOutcome(tuple(history), self.stages)


class Rounding:
    """The codes and input scales of layers as they stand, to be given back."""

    def __init__(self, layers: Mapping[str, QuantizedLayer]) -> None:
        self._codes = [(layer, layer.codes) for layer in layers.values()]
        self._scales = [(q, q.scale.detach()) for q in input_quantizers(layers).values()]

    def restore(self) -> None:
        """Give them back."""
        for layer, codes in self._codes:
            layer.codes = codes
        for quantizer, scale in self._scales:
            quantizer.set_scale(scale)


@dataclass(frozen=True)
class _Work:
    """One block about to be learned."""

    index: int
    block: Block
    layers: dict[str, QuantizedLayer]
    learnable: tuple[ActivationQuantizer, ...]


def ensure_blocks(
    session: Session, checkpoint: Checkpoint, layers: dict[str, QuantizedLayer], folder: Path
) -> BlocksOutcome:
    """Load finished blocks, learn the others in execution order; the layers take the learned values.

    Without iterations there is nothing to learn, and no block is passed.

    Raises:
        CalibrationError: a loss is not finite; finished blocks are kept.
    """
    if session.recipe.calibration.reconstruction.iterations == 0:
        return BlocksOutcome((), ())
    blocks = session.graph.blocks
    finished = set(checkpoint.steps)
    remaining = [i for i, b in enumerate(blocks) if _planned(b, layers) and _step(i, b) not in finished]
    last = remaining[-1] if remaining else -1
    replay = Replay(session.denoiser, session.graph, session.split.samples, folder, session.memory_mb)
    session.report.stage(RECONSTRUCT, len(blocks), _costs(session, set(remaining)))
    learned: set[int] = set()
    history: list[BlockRecord] = []
    stages: list[StageWeights] = []
    logits: NDArray[np.float64] | None = None
    # closed whatever happens: the cache would keep the space that a full disk lacks
    with closing(replay):
        for index, block in enumerate(blocks):
            data = replay.prepare(index) if index <= last else None
            if mine := _planned(block, layers):
                work = _Work(index, block, mine, new_quantizers(mine, learned))
                step = _ensure(session, checkpoint, work, data, logits)
                logits = step["logits"]
                history.append(_unpack(block, mine, step))
                stages.append(_stage(block, step))
                session.report.advance(1, **_shown(history[-1], stages[-1]))
            else:
                session.report.advance()
            if data is not None and index < last:
                replay.advance(index, data)
    return BlocksOutcome(tuple(history), tuple(stages))


def _costs(session: Session, remaining: Collection[int]) -> list[float]:
    """Return about how long each block will take beside the others: those that are loaded take no time."""
    if not remaining:
        return []
    rows = min(session.recipe.calibration.reconstruction.batch, session.chunk)
    seconds = time_blocks(session.denoiser, session.graph, session.split.samples, rows)
    return [seconds[b.name] if i in remaining else 0.0 for i, b in enumerate(session.graph.blocks)]


def _shown(record: BlockRecord, stage: StageWeights) -> dict[str, float]:
    """Return what a user wants to see of a block while she waits."""
    values = {"loss": record.loss_end, "effective": record.effective_samples}
    if stage.cosine_after is not None:
        values["alignment"] = mean_between_groups(stage.cosine_after)
    return values


def _ensure(
    session: Session,
    checkpoint: Checkpoint,
    work: _Work,
    data: BlockData | None,
    logits: NDArray[np.float64] | None,
) -> dict[str, Array]:
    """Load one block's step, or learn and save it."""
    name = _step(work.index, work.block)
    step = checkpoint.get(name)
    if step is None:
        assert data is not None, f"{work.block.name} is not learned, but its data was not prepared"
        step = _learn(session, work, data, logits)
        checkpoint.put(name, step)
    return step


def _learn(
    session: Session, work: _Work, data: BlockData, logits: NDArray[np.float64] | None
) -> dict[str, Array]:
    settings, split = session.recipe.calibration, session.split
    # no block draws what another does, of this seed or the next; the polish takes the number after the last block's
    seed = settings.seed * 100_003 + work.index
    module = session.denoiser.module.get_submodule(work.block.name)
    weighting = session.weighting
    start = sample_losses(data, split.training, settings.reconstruction.batch)
    with _as_function(work, data, module) as loss:
        learned = weighting.weigh("reconstruction", loss, start, seed=seed, logits=logits)
        if learned.fallback:
            session.report.note(f"{work.block.name}: {' '.join(learned.notes)}")
    before = _cosines(session, work, data, module)
    task = BlockTask(
        work.block.name, work.layers, work.learnable, data, split.training, start, learned.weights, seed
    )
    result = reconstruct_block(task, settings.reconstruction)
    after = _cosines(session, work, data, module)
    arrays = {"cosine_before": before, "cosine_after": after}
    return _pack(work.layers, result, learned, {k: v for k, v in arrays.items() if v is not None})


@contextmanager
def _as_function(work: _Work, data: BlockData, module: nn.Module) -> Iterator[StageLoss]:
    """Yield the block's loss as a function of what reconstruction learns: rounding logits and log scales."""
    begin_rounding(work.layers)
    try:
        theta = _parameters(work, module, "rounding.alpha")
        logits = {name: 1.0 for name in theta if name.endswith("alpha")}
        metric = {**dict.fromkeys(theta, _SCALE_METRIC), **logits}
        yield StageLoss(work.block.name, theta, _losses(data), metric)
    finally:
        for layer in work.layers.values():
            layer.rounding = None


def _cosines(session: Session, work: _Work, data: BlockData, module: nn.Module) -> NDArray[np.float32] | None:
    """Return the groups' gradient cosines in the quantized weights and the log scales, as they stand."""
    with free_weights(work.layers):
        theta = _parameters(work, module, "weight_override")
        return group_cosines(StageLoss(work.block.name, theta, _losses(data)), session.split, session.chunk)


def _parameters(work: _Work, module: nn.Module, suffix: str) -> dict[str, nn.Parameter]:
    """Return the block's parameters of that name and the log scales that are learned in it."""
    scales = {id(q.log_gain) for q in work.learnable}
    return {n: p for n, p in module.named_parameters() if n.endswith(suffix) or id(p) in scales}


def _losses(data: BlockData) -> Callable[[Mapping[str, Tensor], NDArray[np.int64]], Tensor]:
    """Return the block's per-sample losses as a function of parameters and rows of all samples."""

    def losses(parameters: Mapping[str, Tensor], rows: NDArray[np.int64]) -> Tensor:
        inputs, targets = data.batch(rows)
        return block_loss(data.call(inputs, parameters), targets)

    return losses


def _step(index: int, block: Block) -> str:
    return f"block-{index:03d}-{block.name}"


def _planned(block: Block, layers: dict[str, QuantizedLayer]) -> dict[str, QuantizedLayer]:
    names = {s.module for s in block.sites}
    return {name: layer for name, layer in layers.items() if name in names}


def new_quantizers(layers: dict[str, QuantizedLayer], learned: set[int]) -> tuple[ActivationQuantizer, ...]:
    """Return the input quantizers first met in this block: a tie across blocks is learned in its first one."""
    fresh = {id(quantizer): quantizer for quantizer in input_quantizers(layers).values()}
    chosen = tuple(q for key, q in fresh.items() if key not in learned)
    learned.update(fresh)
    return chosen


def _pack(
    layers: dict[str, QuantizedLayer],
    result: ReconstructionResult,
    learned: LearnedWeights,
    arrays: Mapping[str, Array],
) -> dict[str, Array]:
    step: dict[str, Array] = {
        "loss_start": scalar(result.loss_start),
        "loss_end": scalar(result.loss_end),
        "kept": scalar(float(result.kept)),
        **pack_weights(learned),
        **arrays,
    }
    for name, layer in layers.items():
        step[f"{name}:weight.codes"] = to_host(layer.codes)
        if layer.input_quantizer is not None:
            step[f"{name}:input.scale"] = scalar(float(layer.input_quantizer.scale))
    return step


def _unpack(block: Block, layers: dict[str, QuantizedLayer], step: dict[str, Array]) -> BlockRecord:
    for name, layer in layers.items():
        layer.codes = torch.from_numpy(step[f"{name}:weight.codes"]).to(layer.codes.device)
        if layer.input_quantizer is not None:
            layer.input_quantizer.set_scale(float(step[f"{name}:input.scale"]))
    learned = unpack_weights(step)
    return BlockRecord(
        name=block.name,
        sites=len(layers),
        loss_start=float(step["loss_start"]),
        loss_end=float(step["loss_end"]),
        kept=bool(step["kept"]),
        effective_samples=effective_samples(learned.weights),
        notes=learned.notes,
    )


def _stage(block: Block, step: dict[str, Array]) -> StageWeights:
    return stage_weights(
        block.name,
        unpack_weights(step),
        alignment=None,  # a pass over all samples in every block would cost what the learning does
        before=step.get("cosine_before"),
        after=step.get("cosine_after"),
    )


def pack_weights(learned: LearnedWeights) -> dict[str, Array]:
    """Return learned weights as the arrays of a checkpoint's step."""
    words = json.dumps({"mode": learned.mode, "fallback": learned.fallback, "notes": learned.notes})
    return {
        "weights": learned.weights,
        "logits": learned.logits,
        "visits": learned.visits,
        "words": np.frombuffer(words.encode(), np.uint8).copy(),
        **{f"trace:{name}": values for name, values in learned.trace.items()},
    }


class _Words(Record):
    """What a step says of learned weights beside its arrays."""

    mode: str
    fallback: bool
    notes: tuple[str, ...]


def _read_words(written: Array) -> _Words:
    what, hint = "'words' of a finished step", RESTORE
    try:
        words = decode_json(written.tobytes())
    except Malformed as error:
        raise ArtifactError(f"{what} are not JSON: {error}.", hint) from None
    return as_record(_Words, words, where=what, hint=hint)


def unpack_weights(step: Mapping[str, Array]) -> LearnedWeights:
    """Return what :func:`pack_weights` packed."""
    words = _read_words(step["words"])
    return LearnedWeights(
        weights=step["weights"],
        logits=step["logits"],
        mode=words.mode,
        fallback=words.fallback,
        notes=words.notes,
        trace={k.removeprefix("trace:"): v for k, v in step.items() if k.startswith("trace:")},
        visits=step["visits"],
    )
