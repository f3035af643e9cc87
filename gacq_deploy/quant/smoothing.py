"""Which share of an activation's range should the weights carry? Smoothing of linear layers.

SmoothQuant (Xiao et al. 2023): X W^T = (X diag(s)^-1) (W diag(s))^T. Outliers of an activation sit in few channels,
where one scale for the tensor cannot follow them; a weight has a scale for each of its rows, and range to spare.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gacq_deploy.quant.affine import channel_shape, fake_quantize
from gacq_deploy.quant.ranges import ActivationRange, RangeMethod, weight_scale
from gacq_deploy.quant.rounding import nearest_codes
from gacq_deploy.spec import TensorSpec

ALPHAS = (0.2, 0.35, 0.5, 0.65, 0.8)
"""What the search tries, beside no smoothing."""
BOUND = 2.0**10
"""s stays within this factor of its geometric mean: half precision must hold what it divides and multiplies."""
_DEAD = 1e-6
"""A channel this much smaller than the largest has no range to speak of."""
_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Smoothing:
    """How one tensor is smoothed for the layers that read it.

    ``factor`` [in] float32 is 1 / s, the very numbers the engine multiplies by: finite, > 0. ``norm`` names the
    normalization layer whose affine part carries it; None: a multiplication before the quantizer does. ``alpha`` is
    the share that it came from.
    """

    factor: Tensor
    alpha: float
    norm: str | None = None

    def input(self, x: Tensor) -> Tensor:
        """Return the smoothed activation, ``x`` [..., in]."""
        return x * self.factor

    def weight(self, weight: Tensor) -> Tensor:
        """Return the smoothed weight [out, in], in float32."""
        return weight / self.factor


def channel_range(x: Tensor) -> Tensor:
    """Return max|x| of every channel of an activation [..., in] or a weight [out, in], float32 [in]."""
    return x.detach().abs().flatten(0, -2).amax(0)


def smoothing_factor(activation: Tensor, weight: Tensor, alpha: float) -> Tensor | None:
    """Return 1 / s float32 [in] with s = activation^alpha / weight^(1 - alpha), SmoothQuant eq. 4; None for nothing.

    ``activation`` and ``weight`` [in] are largest magnitudes by channel, the weight's over all layers that read the
    tensor. s has geometric mean 1 over the live channels (scales follow any common factor) and stays within
    :data:`BOUND`. A channel without activation keeps s = 1: what it does outside the calibration set is not known. One
    without weights is divided by as much as a channel with next to none. None: no channel is alive.
    """
    activation, weight = activation.double(), weight.double()
    live = (activation > _DEAD * activation.max()) & (activation > _TINY)
    if not bool(live.any()) or float(weight.max()) <= _TINY:
        return None
    floor = torch.clamp(weight, min=_DEAD * float(weight.max()))
    logs = alpha * torch.log(activation.clamp(min=_TINY)) - (1 - alpha) * torch.log(floor)
    logs = logs - logs[live].mean()
    bound = math.log(BOUND)
    logs = torch.where(live, logs, torch.zeros_like(logs)).clamp(-bound, bound)
    return torch.exp(-logs).float()


@dataclass(frozen=True)
class Reader:
    """One layer that reads the tensor: its float weight [out, in], how it is quantized and by which range method."""

    weight: Tensor
    spec: TensorSpec
    method: str


@dataclass(frozen=True)
class SmoothingRows:
    """A part of the calibration rows of one tensor.

    ``x`` [R, in] float32 is a sample of them, ``largest`` [in] max|x| by channel over all of them.
    """

    x: Tensor
    largest: Tensor


@dataclass(frozen=True)
class SmoothingSearch:
    """The alpha that one tensor should be smoothed with: ``spec`` and ``method`` are its own, ``readers`` read it.

    Channels that were seen at their largest are clipped where a new state goes further, the more so the more evenly
    they are smoothed. So one part of the rows, ``folds``, sets factor and scale, and the other judges them, in turn.
    """

    folds: tuple[SmoothingRows, SmoothingRows]
    readers: Sequence[Reader]
    spec: TensorSpec
    method: str

    def best(self) -> float | None:
        """Return the alpha of :data:`ALPHAS` with the least :meth:`error`; None if no smoothing has less."""
        found, least = None, self.error(None)
        for alpha in ALPHAS:
            error = self.error(alpha)
            if error < least:
                found, least = alpha, error
        return found

    @torch.no_grad()
    def error(self, alpha: float | None) -> float:
        """Return the relative output error of the fake-quantized readers, summed over readers and both folds.

        For reader l, judged on rows r: sum_r |q(f x_r) q(W_l / f)^T - x_r W_l^T|^2 / sum_r |x_r W_l^T|^2, where
        q rounds to nearest with the scale that the plan's range method finds on the other fold and on the smoothed
        weight, and f is :func:`smoothing_factor` of the other fold.
        """
        weight = torch.stack([channel_range(r.weight) for r in self.readers]).amax(0)
        total = 0.0
        for seen, judged in (self.folds, self.folds[::-1]):
            factor = None if alpha is None else smoothing_factor(seen.largest, weight, alpha)
            smoothing = Smoothing(torch.ones_like(seen.largest) if factor is None else factor, alpha or 0.0)
            quantized = self._quantized(seen, judged, smoothing)
            total += sum(_relative_error(judged, quantized, reader, smoothing) for reader in self.readers)
        return total

    def _quantized(self, seen: SmoothingRows, judged: SmoothingRows, smoothing: Smoothing) -> Tensor:
        observed = ActivationRange(float(smoothing.input(seen.largest).max()))
        observed.observe_histogram(smoothing.input(seen.x))
        found = observed.scale(self.spec, RangeMethod.parse(self.method))
        scale = torch.tensor(found, dtype=torch.float32, device=judged.x.device)
        return fake_quantize(smoothing.input(judged.x), scale, self.spec.qmin, self.spec.qmax)


def _relative_error(rows: SmoothingRows, quantized: Tensor, reader: Reader, smoothing: Smoothing) -> float:
    weight = smoothing.weight(reader.weight)
    scale = weight_scale(weight, reader.spec, RangeMethod.parse(reader.method))
    codes = nearest_codes(weight, scale, reader.spec)
    coded = codes.float() * channel_shape(scale, weight.ndim, reader.spec.axis or 0)
    exact = rows.x @ reader.weight.T
    error = (quantized @ coded.T - exact).double().pow(2).sum(1)
    signal = exact.double().pow(2).sum(1)
    return float(error.sum() / signal.sum().clamp(min=1e-30))
