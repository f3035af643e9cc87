"""Which rounding and activation scales make one block agree with its float self?

Weighted block reconstruction: AdaRound (Nagel et al. 2020) on a block's output (BRECQ, Li et al. 2021) with inputs of
the quantized prefix, and activation scales learned beside it (LSQ, Esser et al. 2020).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gacq_deploy.calibration.replay import BlockData
from gacq_deploy.errors import CalibrationError
from gacq_deploy.models.placement import to_host, to_tensor
from gacq_deploy.quant.layers import ActivationQuantizer, QuantizedLayer
from gacq_deploy.quant.rounding import AdaRound
from gacq_deploy.recipe.calibration import ReconstructionSection

_LOOK_EVERY = 50
"""Iterations between two looks at the loss: each makes a GPU wait for the host."""
_SEED_STREAM = 1 << 42
"""Second Philox key of the mini-batches: beyond the numbers of trajectories, apart from other draws."""


@dataclass(frozen=True)
class BlockTask:
    """One block to reconstruct: its layers, the activation quantizers it may learn, its data, and one weight a sample.

    ``rows`` [N] int64 of ``data`` are learned from; ``losses`` [N] float64 are theirs before learning, as
    :func:`sample_losses` has them; ``weights`` [N] float64 are theirs, of mean 1; ``seed`` decides the mini-batches.
    """

    name: str
    layers: Mapping[str, QuantizedLayer]
    learnable: tuple[ActivationQuantizer, ...]
    data: BlockData
    rows: NDArray[np.int64]
    losses: NDArray[np.float64]
    weights: NDArray[np.float64]
    seed: int

    @property
    def roundings(self) -> list[AdaRound]:
        """The learned roundings, while there are any."""
        return [layer.rounding for layer in self.layers.values() if layer.rounding is not None]


@dataclass(frozen=True)
class ReconstructionResult:
    """Mean weighted loss over the training rows before learning and after hardening, and whether it was kept."""

    loss_start: float
    loss_end: float
    kept: bool


def per_sample_loss(output: Tensor, target: Tensor) -> Tensor:
    """Return ``[B]``: squared error summed over channels, averaged over positions (BRECQ's scaling)."""
    error = (output - target).pow(2)
    return error.sum(1).flatten(1).mean(1) if error.ndim > 2 else error.flatten(1).sum(1)


def block_loss(outputs: tuple[Tensor, ...], targets: tuple[Tensor, ...]) -> Tensor:
    """Return ``[B]``: the sum of :func:`per_sample_loss` over what a block returns; no output weighs more by itself."""
    losses = [per_sample_loss(o, t) for o, t in zip(outputs, targets, strict=True)]
    return losses[0] if len(losses) == 1 else torch.stack(losses).sum(0)


def reconstruct_block(task: BlockTask, settings: ReconstructionSection) -> ReconstructionResult:
    """Learn the rounding of the block's weights and its activation scales, in place; weights end as hard codes.

    If hardening ends with a larger loss than nearest rounding had, nearest rounding and the estimated scales are
    restored.

    Raises:
        CalibrationError: the loss is not finite; the layers hold their state from before the block.
    """
    codes = {name: layer.codes for name, layer in task.layers.items()}
    scales = [q.scale.detach() for q in task.learnable]
    start = _weighted_mean(task, task.losses)
    if settings.iterations == 0 or not task.layers:
        return ReconstructionResult(start, start, kept=True)
    kept = False
    end = start
    try:
        _learn(task, settings)
        end = _weighted_mean(task, sample_losses(task.data, task.rows, settings.batch))
        kept = end <= start
    finally:
        # a loss that is not finite ends here too: the block is left as it was found
        if not kept:
            _restore(task, codes, scales)
    return ReconstructionResult(start, end if kept else start, kept)


def _restore(task: BlockTask, codes: Mapping[str, Tensor], scales: list[Tensor]) -> None:
    for name, layer in task.layers.items():
        layer.rounding = None
        layer.codes = codes[name]
    for quantizer, scale in zip(task.learnable, scales, strict=True):
        quantizer.set_scale(scale)


def _learn(task: BlockTask, settings: ReconstructionSection) -> None:
    begin_rounding(task.layers)
    optimizer = _make_optimizer(task, settings)
    generator = np.random.Generator(np.random.Philox(key=[task.seed, _SEED_STREAM]))
    count = len(task.weights)
    losses: list[Tensor] = []
    for iteration in range(settings.iterations):
        index = np.sort(generator.choice(count, min(settings.batch, count), replace=False))
        loss = _loss(task, index, settings, iteration)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.detach())
        if len(losses) == _LOOK_EVERY or iteration + 1 == settings.iterations:
            _check_finite(task.name, torch.stack(losses).cpu().tolist(), iteration, settings.iterations)
            losses.clear()
    for layer in task.layers.values():
        assert layer.rounding is not None
        layer.codes = layer.rounding.codes()
        layer.rounding = None
    for quantizer in task.learnable:
        quantizer.freeze()


def _check_finite(name: str, losses: list[float], last: int, iterations: int) -> None:
    """Refuse losses, of the iterations up to ``last``, of which one is not finite."""
    wrong = [number for number, loss in enumerate(losses) if not math.isfinite(loss)]
    if wrong:
        iteration = last + 2 - len(losses) + wrong[0]
        raise CalibrationError(
            f"Block '{name}': the loss is {losses[wrong[0]]} at iteration {iteration} of {iterations}. Finished blocks "
            "are kept.",
            "Lower calibration.reconstruction.lr_rounding or lr_scale; the same command resumes before this block.",
        )


def begin_rounding(layers: Mapping[str, QuantizedLayer]) -> None:
    """Give every layer a learnable rounding whose soft weight is the float weight."""
    for layer in layers.values():
        layer.rounding = AdaRound(layer.float_weight, layer.weight_scale, layer.spec)


def _make_optimizer(task: BlockTask, settings: ReconstructionSection) -> torch.optim.Optimizer:
    groups = [{"params": [r.alpha for r in task.roundings], "lr": settings.lr_rounding}]
    if task.learnable and settings.lr_scale > 0:
        for quantizer in task.learnable:
            quantizer.log_gain.requires_grad_(True)
        groups.append({"params": [q.log_gain for q in task.learnable], "lr": settings.lr_scale})
    return torch.optim.Adam(groups, fused=True)


def _loss(
    task: BlockTask, index: NDArray[np.int64], settings: ReconstructionSection, iteration: int
) -> Tensor:
    """Return the weighted reconstruction loss of one mini-batch, with the rounding regulariser once it has begun."""
    inputs, targets = task.data.batch(task.rows[index])
    weights = to_tensor(task.weights[index], task.data.device).float()
    loss = (weights * block_loss(task.data.call(inputs), targets)).mean()
    beta = _beta(iteration, settings)
    if beta is not None:
        loss = (
            loss + settings.rounding_lambda * torch.stack([r.regularizer(beta) for r in task.roundings]).sum()
        )
    return loss


def _beta(iteration: int, settings: ReconstructionSection) -> float | None:
    """Return the regulariser's exponent, annealed linearly after the warm-up, or None during it."""
    warm = settings.warmup * settings.iterations
    if iteration < warm:
        return None
    high, low = settings.beta
    progress = (iteration - warm) / max(1.0, settings.iterations - warm)
    return high + (low - high) * progress


def _weighted_mean(task: BlockTask, losses: NDArray[np.float64]) -> float:
    return float((task.weights * losses).mean())


@torch.no_grad()
def sample_losses(data: BlockData, rows: NDArray[np.int64], batch: int) -> NDArray[np.float64]:
    """Return the loss of every given row of a block, ``[N]``."""
    losses = []
    for first in range(0, len(rows), batch):
        inputs, targets = data.batch(rows[first : first + batch])
        losses.append(to_host(block_loss(data.call(inputs), targets).double()))
    return np.concatenate(losses)
