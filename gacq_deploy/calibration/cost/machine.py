"""How fast is this machine at what calibration does most? Timed on the model, and on a few million numbers."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from gacq_deploy.models.base import Denoiser
from gacq_deploy.quant.affine import channel_shape
from gacq_deploy.quant.ranges import RangeMethod, weight_scale
from gacq_deploy.quant.rounding import AdaRound
from gacq_deploy.spec import TensorSpec
from gacq_deploy.storage.digests import digest_array

_SLOW_S = 0.5
"""A forward pass this long is not repeated, and larger batches are not run: rows cost the same."""
_SPEC = TensorSpec(bits=8, axis=0, narrow=True)
_ROWS, _COLUMNS = 1024, 2048
"""Of the matrix that is timed: beyond the caches, as a large model's weights are."""


class ForwardTime:
    """Seconds of one forward pass by batch size, measured; of a slow model, from those of one and two rows."""

    def __init__(self, denoiser: Denoiser) -> None:
        self._denoiser = denoiser
        self._known: dict[int, float] = {}

    def __call__(self, batch: int) -> float:
        """Return the time of a pass over ``batch`` rows."""
        batch = max(1, batch)
        if self._timed(1) < _SLOW_S or batch == 1:
            return self._timed(batch)
        return self._timed(1) + (batch - 1) * max(0.0, self._timed(2) - self._timed(1))

    def _timed(self, batch: int) -> float:
        if batch not in self._known:
            inputs = self._denoiser.example_inputs(batch)
            sample, timestep = inputs.pop("sample"), inputs.pop("timestep")
            with torch.no_grad():
                self._known[batch] = _faster(lambda: self._denoiser(sample, timestep, inputs))
        return self._known[batch]


def _faster(call: Callable[[], Any]) -> float:
    """Return the faster of two runs after a warm-up, or the first if it is slow."""
    times: list[float] = []
    for _ in range(3):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
        if times[0] > _SLOW_S:
            return times[0]
    return min(times[1:])


@cache
def rounding_seconds() -> float:
    """Return the time one weight takes in one step of learned rounding: soft weight, regulariser, gradient, Adam."""
    rounding = AdaRound(_weights(), torch.full((_ROWS,), 0.02), _SPEC)
    optimizer = torch.optim.Adam([rounding.alpha])

    def step() -> None:
        optimizer.zero_grad()
        (rounding.soft_weight().sum() + rounding.regularizer(2.0)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return _faster(step) / (_ROWS * _COLUMNS)


@cache
def dequantizing_seconds() -> float:
    """Return the time one weight takes to become float again, as in every pass of a fake-quantized model."""
    codes, scale = torch.ones((_ROWS, _COLUMNS), dtype=torch.int8), torch.ones(_ROWS)
    return _faster(lambda: codes.float() * channel_shape(scale, 2, 0)) / (_ROWS * _COLUMNS)


@cache
def digest_seconds() -> float:
    """Return the time one weight takes to be digested."""
    array = _weights().numpy()
    return _faster(lambda: digest_array(array)) / array.size


@cache
def range_seconds(method: str) -> float:
    """Return the time one weight's share of its layer's scale takes to be found."""
    rows = _weights()[: _ROWS // 16]
    return _faster(lambda: weight_scale(rows, _SPEC, RangeMethod.parse(method))) / rows.numel()


def _weights() -> torch.Tensor:
    return torch.randn((_ROWS, _COLUMNS), generator=torch.Generator().manual_seed(0))
