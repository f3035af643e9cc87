"""How long does one calibration take on this machine? Passes over the samples, steps, and what every weight costs."""

from __future__ import annotations

from gacq_deploy.calibration.cost.machine import (
    ForwardTime,
    dequantizing_seconds,
    digest_seconds,
    range_seconds,
    rounding_seconds,
)
from gacq_deploy.calibration.cost.memory import Counts
from gacq_deploy.calibration.smoothing import SEARCHED_STATES
from gacq_deploy.calibration.weighting.objective import TRAJECTORIES

_STEP_COST = 3.4
"""One reconstruction step in forward passes of the same batch: forward, backward, Adam; measured on the demo UNet,
where the small blocks' fixed costs count."""
_META_STEPS = 18
"""One meta iteration in training steps of its batch; measured on the demo UNets: 9 on the larger, 18 on the smaller."""
_DIGESTS = 3
"""How often every weight is read whole: finite, digested with the model, digested for the artifact."""
_GRADIENT = 10
"""Cost of a weight's gradient in a group and its cosines, in dequantizations."""


def estimate_seconds(counts: Counts) -> float:
    """Return the time of all passes over the samples, all steps on mini-batches, and all weights by themselves."""
    recipe, forward = counts.recipe, ForwardTime(counts.denoiser)
    # a trajectory's steps run in turn: a last, smaller batch costs a pass as well
    collected = recipe.samples.steps * -(-recipe.samples.trajectories // recipe.samples.batch)
    passes = (_rows_passed(counts) + 4 * counts.probe_rows) / counts.chunk
    return (
        collected * forward(recipe.samples.batch * counts.branches)
        + passes * (forward(counts.chunk) + dequantizing_seconds() * counts.quantized)
        + sum(
            steps * (_STEP_COST * forward(min(batch, counts.training)) + each * counts.quantized)
            for steps, batch, each in _steps(counts)
            if steps > 0
        )
        + _gain_passes(counts) * forward(TRAJECTORIES * counts.branches)
        + _weights_seconds(counts)
    )


def _weights_seconds(counts: Counts) -> float:
    """Return the time that weights take whatever the samples: digests, scales, the groups' gradients in every block."""
    module = counts.denoiser.module
    searched = sum(
        module.get_submodule(e.site.module).get_parameter("weight").numel() * range_seconds(e.range_method)
        for e in counts.plan.of_role("weight")
    )
    groups = min(counts.held, counts.recipe.calibration.weighting.groups)
    cosines = 2 * groups * _GRADIENT * dequantizing_seconds() * counts.quantized
    return _DIGESTS * digest_seconds() * counts.weights + searched + cosines


def _rows_passed(counts: Counts) -> float:
    """Return how many rows the whole model sees beside the steps, in forward passes of a row."""
    training, held = counts.training, counts.held
    polished = counts.is_polished
    # ranges read the set twice, replay carries two streams, each block's loss is taken before and after learning
    blocks = 2 * training + 2 * (training + held) + 2 * training
    smoothing = counts.recipe.quantization.smoothing
    if smoothing is not None:  # it reads the set once, the search some of it again
        blocks += training + (min(training, SEARCHED_STATES) if smoothing.alpha == "search" else 0)
    told = (2 + polished) * (held or training)
    # gradients of the groups before and after every block and the polish
    cosines = 2 * (1 + polished) * _STEP_COST * held
    # the losses before and after; where weights are learned, how every sample's gradient lies
    learned = polished and counts.learns("polish")
    return blocks + told + cosines + polished * 2 * training + learned * _STEP_COST * training


def _steps(counts: Counts) -> tuple[tuple[int, int, float], ...]:
    """Return (training steps of the whole model, their batch, seconds a weight) of every kind; meta iterations too."""
    settings = counts.recipe.calibration
    weighting = settings.weighting
    # what a stage tries out before its first meta iteration costs about one
    blocks = (1 + weighting.iterations) * counts.learns("reconstruction")
    polish = (1 + weighting.polish_iterations) * counts.learns("polish") if counts.is_polished else 0
    rounding, scaling = rounding_seconds(), (2 + counts.is_checkpointed) * dequantizing_seconds()
    again = (1 + counts.is_checkpointed / _STEP_COST) if counts.is_polished else 1
    return (
        (settings.reconstruction.iterations, settings.reconstruction.batch, rounding),
        (round(settings.polish.steps * again), settings.polish.batch, scaling),
        (_META_STEPS * blocks, weighting.batch, rounding),
        (_META_STEPS * polish, weighting.batch, scaling),
    )


def _gain_passes(counts: Counts) -> float:
    """Return the passes that measure what each step's error does to the image: to the end from every step."""
    settings, steps = counts.recipe.calibration, counts.recipe.samples.steps
    if settings.objective != "images" or settings.weighting.mode == "uniform" or settings.polish.steps == 0:
        return 0
    return 3 * steps + steps * (steps - 1) / 2
