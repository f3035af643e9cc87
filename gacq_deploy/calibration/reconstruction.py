"""Which rounding and activation scales make one block agree with its float self?

Weighted block reconstruction: AdaRound (Nagel et al. 2020) on a block's output (BRECQ, Li et al. 2021) with inputs of
the quantized prefix, and activation scales learned beside it (LSQ, Esser et al. 2020).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gacq_deploy.calibration.replay import BlockData
from gacq_deploy.errors import CalibrationError
from gacq_deploy.quant.layers import ActivationQuantizer, QuantizedLayer
from gacq_deploy.quant.rounding import AdaRound
from gacq_deploy.recipe import ReconstructionSection


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


def reconstruct_block(
    name: str,
    layers: Mapping[str, QuantizedLayer],
    learnable: tuple[ActivationQuantizer, ...],
    data: BlockData,
    weights: NDArray[np.float64],
    settings: ReconstructionSection,
    seed: int,
) -> ReconstructionResult:
    """Learn the rounding of ``layers`` and the scales of ``learnable``, in place; weights end as hard codes.

    ``weights`` [N] has mean 1. If hardening ends with a larger loss than nearest rounding had, nearest rounding and
    the estimated scales are restored.

    Raises:
        CalibrationError: the loss is not finite; the layers hold their state from before the block.
    """
    before = {n: layer.codes for n, layer in layers.items()}
    scales = [float(q.scale) for q in learnable]
    start = mean_loss(data, weights, settings.batch)
    if settings.iterations == 0 or not layers:
        return ReconstructionResult(start, start, kept=True)
    try:
        _learn(name, layers, learnable, data, weights, settings, seed)
        end = mean_loss(data, weights, settings.batch)
        kept = end <= start
    except CalibrationError:
        kept = False
        raise
    finally:
        for layer in layers.values():
            layer.rounding = None
        if not kept:
            _restore(layers, before, learnable, scales)
    return ReconstructionResult(start, end if kept else start, kept)


def _restore(
    layers: Mapping[str, QuantizedLayer],
    codes: Mapping[str, Tensor],
    learnable: tuple[ActivationQuantizer, ...],
    scales: list[float],
) -> None:
    for name, layer in layers.items():
        layer.codes = codes[name]
    for quantizer, scale in zip(learnable, scales, strict=True):
        quantizer.set_scale(scale)


def _learn(
    name: str,
    layers: Mapping[str, QuantizedLayer],
    learnable: tuple[ActivationQuantizer, ...],
    data: BlockData,
    weights: NDArray[np.float64],
    settings: ReconstructionSection,
    seed: int,
) -> None:
    for layer in layers.values():
        layer.rounding = AdaRound(layer.float_weight, layer.weight_scale, layer.spec)
    for quantizer in learnable:
        quantizer.log_gain.requires_grad_(settings.lr_scale > 0)
    roundings = [layer.rounding for layer in layers.values() if layer.rounding is not None]
    groups = [{"params": [r.alpha for r in roundings], "lr": settings.lr_rounding}]
    if learnable and settings.lr_scale > 0:
        groups.append({"params": [q.log_gain for q in learnable], "lr": settings.lr_scale})
    optimizer = torch.optim.Adam(groups)
    generator = np.random.Generator(np.random.Philox(key=[seed, 1 << 42]))
    for iteration in range(settings.iterations):
        index = np.sort(generator.choice(len(weights), min(settings.batch, len(weights)), replace=False))
        inputs, target = data.batch(index)
        w = torch.from_numpy(weights[index]).float()
        loss = (w * per_sample_loss(data.call(inputs), target)).mean()
        beta = _beta(iteration, settings)
        if beta is not None:
            loss = loss + settings.rounding_lambda * torch.stack([r.regularizer(beta) for r in roundings]).sum()
        if not bool(torch.isfinite(loss)):
            raise CalibrationError(
                f"Block '{name}': the loss is {float(loss.detach())} at iteration {iteration + 1} of {settings.iterations}. "
                "Finished blocks are kept.",
                "Lower calibration.reconstruction.lr_rounding or lr_scale; the same command resumes before this block.",
            )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    for layer in layers.values():
        assert layer.rounding is not None
        layer.codes = layer.rounding.codes()
        layer.rounding = None
    for quantizer in learnable:
        quantizer.freeze()


def _beta(iteration: int, settings: ReconstructionSection) -> float | None:
    """Return the regulariser's exponent, annealed linearly after the warm-up, or None during it."""
    warm = settings.warmup * settings.iterations
    if iteration < warm:
        return None
    high, low = settings.beta
    progress = (iteration - warm) / max(1.0, settings.iterations - warm)
    return high + (low - high) * progress


@torch.no_grad()
def mean_loss(data: BlockData, weights: NDArray[np.float64], batch: int) -> float:
    """Return the weighted mean loss of a block over all its samples."""
    total = 0.0
    for first in range(0, len(weights), batch):
        index = np.arange(first, min(first + batch, len(weights)))
        inputs, target = data.batch(index)
        losses = per_sample_loss(data.call(inputs), target).double().numpy()
        total += float((weights[index] * losses).sum())
    return total / len(weights)
