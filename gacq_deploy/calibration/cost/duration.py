"""How long does one calibration take on this machine? A forward pass and one block's steps are timed, then counted."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from gacq_deploy.artifact.call import SAMPLE, TIMESTEP
from gacq_deploy.calibration.blocks import RECONSTRUCT, new_quantizers
from gacq_deploy.calibration.cost.memory import Counts
from gacq_deploy.calibration.polish import POLISH_STAGE, START, WARM, WEIGH
from gacq_deploy.calibration.probe import PROBE
from gacq_deploy.calibration.ranges import RANGES
from gacq_deploy.calibration.reconstruction import BlockTask, reconstruct_block, sample_losses
from gacq_deploy.calibration.replay import BlockData, Replay
from gacq_deploy.calibration.smoothing import SEARCH, SEARCHED_STATES, SMOOTH
from gacq_deploy.calibration.stage_gains import MEASURE
from gacq_deploy.calibration.weighting.objective import TRAJECTORIES, gain_passes
from gacq_deploy.calibration.weighting.weighting import alignment_cost
from gacq_deploy.models.base import Denoiser
from gacq_deploy.models.placement import to_host
from gacq_deploy.models.structure.graph import Block
from gacq_deploy.models.trajectories.drawn import COLLECT, PROBE_STATES
from gacq_deploy.progress import PlannedStage
from gacq_deploy.quant.layers import QuantizedLayer
from gacq_deploy.quant.prepare import insert_quantizers
from gacq_deploy.samples.calibration_set import CalibrationSet
from gacq_deploy.spec import QuantPlan

_SLOW_S = 0.5
"""A call this long is not repeated, and not made on a larger batch: rows cost the same."""
_LONG_S = 20.0
"""A call this long is not even made on two rows: what it costs beside its rows is nothing against them."""
ENOUGH_S, _LEAST_CALLS, _MOST_CALLS = 0.2, 4, 20
"""A call is repeated so long, or so often: a tenth of a second is free of other work on a busy machine, too."""
_TIMED_STEPS = 4
"""Enough that what comes before the first step and after the last does not count."""
_META_STEPS = 12
"""One meta iteration in training steps of its batch: 9 on the larger demo UNet, 18 on the smaller."""


@dataclass(frozen=True)
class BlockTime:
    """What learning costs, timed on one block: ``step`` in forward passes, ``preparing`` in seconds a weight."""

    step: float
    preparing: float


def estimate_stages(counts: Counts, enough_s: float = ENOUGH_S) -> tuple[PlannedStage, ...]:
    """Return the stages that calibration will announce, in order, with their seconds on this machine.

    Every kind of call is repeated for ``enough_s`` seconds, or once if it takes longer.
    """
    settings, samples = counts.recipe.calibration, counts.recipe.samples
    smoothing = counts.recipe.quantization.smoothing
    forward, block = forward_time(counts.denoiser, enough_s), time_block(counts, enough_s)
    row = forward(counts.chunk) / counts.chunk
    meta = _META_STEPS * block.step * forward(min(settings.weighting.batch, counts.training))
    cosines = 2 * block.step * counts.held * row
    error = (counts.held or counts.training) * row
    # a trajectory's steps run in turn: a last, smaller batch costs a pass as well
    walked = forward(samples.batch * counts.branches) * samples.steps
    polishing = _polishing(counts, block, forward)
    # steps before the weights are learned, so that they are those of a model that is polished a little
    warm = polishing * settings.polish.warmup * counts.learns("polish")
    measured = PlannedStage(MEASURE, error)
    is_smoothed, is_learned = smoothing is not None, settings.reconstruction.iterations > 0
    stages = [
        (True, PlannedStage(COLLECT, walked * -(-samples.trajectories // samples.batch))),
        (is_smoothed, PlannedStage(SMOOTH, counts.training * row)),
        (
            smoothing is not None and smoothing.alpha == "search",
            PlannedStage(SEARCH, min(counts.training, SEARCHED_STATES) * row),
        ),
        # the largest values, then histograms; then the layers' weights
        (True, PlannedStage(RANGES, 2 * counts.training * row + block.preparing * counts.quantized)),
        (True, measured),
        (is_learned, PlannedStage(RECONSTRUCT, _in_blocks(counts, block, forward, meta) + cosines)),
        (is_learned, measured),
        (
            counts.is_polished,
            PlannedStage(
                START,
                counts.training * row
                + cosines
                + _gain_passes(counts) * forward(TRAJECTORIES * counts.branches),
            ),
        ),
        (counts.is_polished and warm > 0, PlannedStage(WARM, warm)),
        (counts.is_polished, PlannedStage(WEIGH, _weighing(counts, meta))),
        (counts.is_polished, PlannedStage(POLISH_STAGE, polishing - warm + counts.training * row + cosines)),
        (counts.is_polished, measured),
        (True, PlannedStage(PROBE_STATES, counts.probe_rows * row)),
        # by the float model and in both placements
        (True, PlannedStage(PROBE, 3 * counts.probe_rows * row)),
    ]
    return tuple(stage for runs, stage in stages if runs)


class TimeOfRows:
    """Seconds of a call by its number of rows, measured; where many are slow, from those of one, or of two rows."""

    def __init__(self, run: Callable[[int], Callable[[], Any]], enough_s: float) -> None:
        self._run = run
        self._enough_s = enough_s
        self._known: dict[int, float] = {}

    def __call__(self, rows: int) -> float:
        """Return the time of a call on ``rows`` rows."""
        rows = max(1, rows)
        if rows * self._timed(1) < _SLOW_S or rows == 1:
            return self._timed(rows)
        if self._timed(1) > _LONG_S:
            return rows * self._timed(1)
        return self._timed(1) + (rows - 1) * max(0.0, self._timed(2) - self._timed(1))

    def _timed(self, rows: int) -> float:
        if rows not in self._known:
            self._known[rows] = _fastest(self._run(rows), self._enough_s)
        return self._known[rows]


def forward_time(denoiser: Denoiser, enough_s: float = ENOUGH_S) -> TimeOfRows:
    """Return the time of the model's forward pass."""

    def run(rows: int) -> Callable[[], Any]:
        inputs = denoiser.example_inputs(rows)
        sample, timestep = inputs.pop(SAMPLE), inputs.pop(TIMESTEP)
        # as in a pass over the samples the answer goes to the host: a GPU is done with it then, and not before
        return torch.no_grad()(lambda: to_host(denoiser(sample, timestep, inputs)))

    return TimeOfRows(run, enough_s)


def time_block(counts: Counts, enough_s: float = ENOUGH_S) -> BlockTime:
    """Learn the block of median size for a few steps, on noise, in a folder that is removed; the model stays float."""
    planned = [(b, counts.layers_of(b)) for b in counts.graph.blocks]
    # the name stands before the block: blocks of one size cannot be compared
    sized = sorted((sum(map(counts.weights_of, names)), b.name, b, names) for b, names in planned if names)
    weights, _, block, names = sized[len(sized) // 2]
    mine = QuantPlan(tuple(e for e in counts.plan if e.site.module in names))
    module = counts.denoiser.module
    with ExitStack() as stack:
        for name in names:
            stack.callback(module.set_submodule, name, module.get_submodule(name))
        layers = dict[str, QuantizedLayer]()
        seconds = _own_seconds(
            lambda: layers.update(insert_quantizers(module, mine, {e.tie: 1.0 for e in mine}))
        )
        preparing = seconds / weights
        folder = Path(stack.enter_context(TemporaryDirectory()))
        return BlockTime(_step_in_passes(counts, block, layers, folder, enough_s), preparing)


def _step_in_passes(
    counts: Counts, block: Block, layers: dict[str, QuantizedLayer], folder: Path, enough_s: float
) -> float:
    section = counts.recipe.calibration.reconstruction
    batch = min(section.batch, counts.training)
    learnable = new_quantizers(layers, set())
    settings = section.model_copy(update={"iterations": _TIMED_STEPS, "warmup": 0.0})

    @cache  # no more rows than are timed: a whole batch of a large model takes minutes
    def data(rows: int) -> BlockData:
        own = folder / str(rows)
        own.mkdir()
        samples = _noise(counts.denoiser, rows)
        replay = Replay(counts.denoiser, counts.graph, samples, own, counts.memory_mb)
        return replay.prepare(counts.graph.blocks.index(block))

    def learn(rows: int) -> Callable[[], Any]:
        ones = np.ones(rows)
        task = BlockTask(block.name, layers, learnable, data(rows), np.arange(rows), ones, ones, seed=0)
        return lambda: reconstruct_block(task, settings)

    def forward(rows: int) -> Callable[[], Any]:
        return lambda: sample_losses(data(rows), np.arange(rows), rows)

    return TimeOfRows(learn, enough_s)(batch) / _TIMED_STEPS / TimeOfRows(forward, enough_s)(batch)


def _noise(denoiser: Denoiser, rows: int) -> CalibrationSet:
    inputs = {name: to_host(value) for name, value in denoiser.example_inputs(rows).items()}
    latents, timesteps = inputs.pop(SAMPLE), inputs.pop(TIMESTEP)
    number = np.arange(rows)
    return CalibrationSet(
        latents=latents,
        timesteps=timesteps.astype(np.int64),
        float_timesteps=None if timesteps.dtype == np.int64 else timesteps,
        targets=latents,
        conditioning=inputs,
        trajectory=number,
        step=np.zeros_like(number),
        validation=np.zeros(rows, np.uint8),
    )


def _fastest(call: Callable[[], Any], enough_s: float) -> float:
    """Return the fastest of several runs after a warm-up, or the first if it is slow.

    What else the machine does makes a call many times as slow: the fastest is a short call's own time, and a long one
    counts no more than what this process computed.
    """
    times: list[float] = []
    while len(times) < _LEAST_CALLS or (len(times) < _MOST_CALLS and sum(times) < enough_s):
        times.append(_own_seconds(call))
        if times[0] > _SLOW_S:
            return times[0]
    return min(times[1:])


def _own_seconds(call: Callable[[], Any]) -> float:
    """Return how long a call takes on a machine that does nothing else: time that other processes took is left out."""
    wall, computed = time.perf_counter(), time.process_time()
    call()
    # threads together compute more than the time that passes
    return min(time.perf_counter() - wall, time.process_time() - computed)


def _in_blocks(counts: Counts, block: BlockTime, forward: TimeOfRows, meta: float) -> float:
    settings = counts.recipe.calibration
    section = settings.reconstruction
    learned = section.iterations * block.step * forward(min(section.batch, counts.training))
    # replay carries two streams of all rows, each block's loss is taken before and after learning
    passed = (2 * counts.rows + 2 * counts.training) * forward(counts.chunk) / counts.chunk
    # what a stage tries out before its first meta iteration costs about one
    return learned + passed + meta * (1 + settings.weighting.iterations) * counts.learns("reconstruction")


def _weighing(counts: Counts, meta: float) -> float:
    """Return the time of the polish's weights; where they are learned, how every sample's gradient lies, too."""
    if not counts.learns("polish"):
        return 0.0
    section = counts.recipe.calibration.weighting
    return meta * (1 + section.polish_iterations + alignment_cost(section, counts.training, section.groups))


def _polishing(counts: Counts, block: BlockTime, forward: TimeOfRows) -> float:
    section = counts.recipe.calibration.polish
    # block by block, every forward pass is run twice
    steps = section.steps * (4 / 3 if counts.is_checkpointed else 1)
    return steps * block.step * forward(min(section.batch, counts.training))


def _gain_passes(counts: Counts) -> int:
    """Return the passes that measure what each step's error does to the image."""
    settings, steps = counts.recipe.calibration, counts.recipe.samples.steps
    if settings.objective != "images" or settings.weighting.mode == "uniform" or settings.polish.steps == 0:
        return 0
    return gain_passes(steps)
