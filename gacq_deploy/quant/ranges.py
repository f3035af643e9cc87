"""Which scale fits a tensor? One table of estimators, for weights and for streamed activations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gacq_deploy.quant.affine import channel_shape, fake_quantize, half_exact
from gacq_deploy.spec import TensorSpec

DEAD_SCALE = 1.0
"""Scale of a tensor that is zero everywhere: engines refuse 0, and a tiny one overflows the int32 bias beside it."""
DEAD_BELOW = 1e-30
"""An activation that never exceeds this is zero everywhere; dividing by it would overflow."""
DEAD_RATIO = 1e-6
"""A weight channel this much smaller than the layer's largest is dead; it takes the largest channel's scale."""
_BINS = 4096
_CHECK_EVERY = 4
"""Scales tried between two looks at which rows can still improve."""
_WORTH_LEAVING = 0.8
"""Share of open rows below which the others are left out, which copies."""
_MARGIN = 1e-6
"""More than what sums of float64 are rounded by."""
_RATIOS = torch.linspace(0.2, 1.0, 81, dtype=torch.float64)
"""Parts of the largest value that are tried as the range, in steps of one hundredth."""


@dataclass(frozen=True)
class RangeMethod:
    """A range method as the plan names it, ``minmax`` or ``percentile:99.9``: a key of :data:`ESTIMATORS`, a number."""

    name: str
    value: float = 0.0

    @classmethod
    def parse(cls, text: str) -> RangeMethod:
        """Return the method that ``text`` names.

        Raises:
            ValueError: unknown name.
        """
        name, _, value = text.partition(":")
        if name not in ESTIMATORS:
            raise ValueError(f"unknown range method {text!r}, known are {', '.join(ESTIMATORS)}")
        return cls(name, float(value) if value else 0.0)


def weight_scale(weight: Tensor, spec: TensorSpec, method: RangeMethod) -> Tensor:
    """Return the scale of ``weight`` float32: [channels] along ``spec.axis``, or per block [out, in / block]."""
    axis = spec.axis or 0
    shape = (weight.shape[axis],) if spec.block is None else spec.scale_shape(tuple(weight.shape))
    rows = weight.detach().movedim(axis, 0).reshape(math.prod(shape), -1).double()
    scale = _without_dead(ESTIMATORS[method.name].rows(rows, spec, method.value)).float()
    return scale if spec.block is None else half_exact(scale).reshape(shape)


def _without_dead(scale: Tensor) -> Tensor:
    top = scale.max()
    top = torch.where(top > 0, top, DEAD_SCALE)
    return torch.where(scale <= DEAD_RATIO * top, top, scale)


def _largest_of_rows(rows: Tensor, spec: TensorSpec, _: float) -> Tensor:
    return rows.abs().amax(1) / spec.qmax


def _percentile_of_rows(rows: Tensor, spec: TensorSpec, percentile: float) -> Tensor:
    return torch.quantile(rows.abs(), percentile / 100, dim=1) / spec.qmax


def _least_error_of_rows(rows: Tensor, spec: TensorSpec, p: float) -> Tensor:
    """Return the best scale of every row; a row is left as soon as what it clips is worse than its best error.

    Smaller scales clip more, so none of them can be chosen: the result is that of trying all.
    """
    scale = _without_dead(_largest_of_rows(rows, spec, p))
    best = torch.full_like(scale, torch.inf)
    chosen = scale.clone()
    rest = torch.arange(len(rows), device=rows.device)
    for number, ratio in enumerate(_RATIOS.flip(0)):
        candidate = scale[rest] * ratio
        quantized = fake_quantize(rows, channel_shape(candidate, 2, 0), spec.qmin, spec.qmax)
        error = (rows - quantized).abs().pow(p).sum(1)
        better = error < best[rest]
        best[rest] = torch.where(better, error, best[rest])
        chosen[rest] = torch.where(better, candidate, chosen[rest])
        if number % _CHECK_EVERY == _CHECK_EVERY - 1:
            largest = channel_shape(candidate, 2, 0) * max(spec.qmax, -spec.qmin)
            clipped = (rows.abs() - largest).clamp_(min=0).pow(p).sum(1)
            is_open = clipped <= best[rest] * (1 + _MARGIN)
            count = int(is_open.sum())
            if count == 0:
                break
            if 1 < count < _WORTH_LEAVING * len(rest):
                rows, rest = rows[is_open], rest[is_open]
    return chosen


class ActivationRange:
    """Collects a histogram of |x| of a streamed tensor, up to its largest value, which another pass has found.

    The result does not depend on how the stream is cut into chunks (counts are integers).
    """

    def __init__(self, largest: float = 0.0) -> None:
        self.largest = largest
        self._counts: Tensor | None = None

    def observe_histogram(self, x: Tensor) -> None:
        """Second pass, when the largest value is known."""
        if self.largest < DEAD_BELOW:
            return
        # the largest value is the upper edge of the last bin
        bins = (x.abs().flatten() * (_BINS / self.largest)).long().clamp_(max=_BINS - 1)
        counts = torch.bincount(bins, minlength=_BINS)
        self._counts = counts if self._counts is None else self._counts + counts

    def scale(self, spec: TensorSpec, method: RangeMethod) -> float:
        """Return the estimated scale; asymmetric int8 bounds are treated as ``qmax`` on both sides."""
        if self._counts is None:
            return DEAD_SCALE
        histogram = Histogram(self._counts.cpu(), self.largest)
        return ESTIMATORS[method.name].histogram(histogram, spec, method.value)


class Histogram(NamedTuple):
    """How many values of |x| lie in each bin, from 0 to the largest, which is not 0."""

    counts: Tensor
    largest: float

    @property
    def width(self) -> float:
        """Of a bin."""
        return self.largest / len(self.counts)


def _largest(seen: Histogram, spec: TensorSpec, _: float) -> float:
    return seen.largest / spec.qmax


def _percentile(seen: Histogram, spec: TensorSpec, percentile: float) -> float:
    share = seen.counts.double().cumsum(0) / seen.counts.sum()
    index = int(torch.searchsorted(share, percentile / 100).clamp(max=len(share) - 1))
    return (index + 1) * seen.width / spec.qmax


def _least_error(seen: Histogram, spec: TensorSpec, p: float) -> float:
    centres = (torch.arange(len(seen.counts), dtype=torch.float64) + 0.5) * seen.width
    top = _largest(seen, spec, p)

    def error(ratio: float) -> float:
        scale = torch.tensor(top * ratio, dtype=torch.float64)
        quantized = fake_quantize(centres, scale, spec.qmin, spec.qmax)
        return float(((centres - quantized).abs().pow(p) * seen.counts).sum())

    best: float = min(_RATIOS.tolist(), key=error)
    return top * best


class Estimator(NamedTuple):
    """How a range method finds a scale; each function also takes the method's number, 0 where it has none."""

    rows: Callable[[Tensor, TensorSpec, float], Tensor]
    """Of weights float64 ``[rows, n]``, one scale a row; for dead rows whatever it likes."""
    histogram: Callable[[Histogram, TensorSpec, float], float]
    """Of an activation."""


ESTIMATORS: dict[str, Estimator] = {
    "minmax": Estimator(_largest_of_rows, _largest),
    "percentile": Estimator(_percentile_of_rows, _percentile),
    "mse": Estimator(_least_error_of_rows, _least_error),
}
"""By the name that recipes give the method."""
