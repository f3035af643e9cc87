"""Up or down? Nearest rounding, and AdaRound's learned rounding (Nagel et al. 2020)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gacq_deploy.quant.affine import quantize_codes, spread_scale, within
from gacq_deploy.spec import TensorSpec

ZETA, GAMMA = 1.1, -0.1
"""Stretch of the rectified sigmoid, AdaRound eq. 23."""


def nearest_codes(weight: Tensor, scale: Tensor, spec: TensorSpec) -> Tensor:
    """Return int8 codes of ``weight`` rounded to nearest, half to even."""
    return quantize_codes(weight, spread_scale(scale, weight.ndim, spec), spec.qmin, spec.qmax)


class AdaRound(nn.Module):
    """Learned rounding of one weight: ``floor(w / s) + h(alpha)`` with ``h`` in [0, 1].

    ``alpha`` (the paper's V) has the weight's shape; it starts where the soft weight equals the float weight.
    """

    def __init__(self, weight: Tensor, scale: Tensor, spec: TensorSpec) -> None:
        super().__init__()
        self._spec = spec
        self._scale = spread_scale(scale, weight.ndim, spec)
        ratio = weight / self._scale
        self._floor = ratio.floor()
        rest = ratio - self._floor
        self.alpha = nn.Parameter(-torch.log((ZETA - GAMMA) / (rest - GAMMA) - 1))

    def h(self) -> Tensor:
        """Rectified sigmoid of alpha."""
        return _rectified_sigmoid(self.alpha)

    def soft_weight(self) -> Tensor:
        """Return the differentiable fake-quantized weight."""
        fixed = (self._floor, self._scale, self._spec.qmin, self._spec.qmax)
        weight: Tensor = _SoftWeight.apply(self.alpha, *fixed)  # type: ignore[no-untyped-call]
        return weight

    def codes(self) -> Tensor:
        """Return the int8 codes of the hardened rounding: up where h >= 1/2."""
        up = (self.alpha.detach() >= 0).to(self._floor.dtype)
        return (self._floor + up).clamp(self._spec.qmin, self._spec.qmax).to(torch.int8)

    def regularizer(self, beta: float) -> Tensor:
        """Return sum(1 - |2h - 1|^beta), which pushes h to 0 or 1 (AdaRound eq. 24); it has one derivative."""
        value: Tensor = _Regularizer.apply(self.alpha, beta)  # type: ignore[no-untyped-call]
        return value


def _rectified_sigmoid(alpha: Tensor) -> Tensor:
    """Return h, AdaRound eq. 23."""
    return (torch.sigmoid(alpha) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def _rectified(alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Return h and its derivative, both in the shape of ``alpha``."""
    sigmoid = torch.sigmoid(alpha)
    stretched = sigmoid * (ZETA - GAMMA) + GAMMA
    h = stretched.clamp(0, 1)
    slope = torch.addcmul(sigmoid, sigmoid, sigmoid, value=-1).mul_(ZETA - GAMMA)
    return h, within(slope, stretched, 0, 1)


class _SoftWeight(torch.autograd.Function):
    """``clamp(floor + h(alpha)) * scale``, its derivative made in the same pass.

    Where derivatives are themselves differentiated, it is written out.
    """

    @staticmethod
    def forward(ctx: Any, alpha: Tensor, floor: Tensor, scale: Tensor, qmin: int, qmax: int) -> Tensor:
        h, slope = _rectified(alpha)
        codes = h.add_(floor)
        clamped = codes.clamp(qmin, qmax)
        slope = within(slope, codes, qmin, qmax).mul_(scale)
        ctx.save_for_backward(alpha, floor, scale, slope)
        ctx.save_for_forward(slope)
        ctx.bounds = (qmin, qmax)
        return clamped.mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        alpha, floor, scale, slope = ctx.saved_tensors
        if torch.is_grad_enabled():
            weight = (floor + _rectified_sigmoid(alpha)).clamp(*ctx.bounds) * scale
            return *torch.autograd.grad(weight, alpha, gradient, create_graph=True), None, None, None, None
        return gradient * slope, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, alpha: Tensor, *_: Any) -> Tensor:
        slope: Tensor = ctx.saved_tensors[0]
        return slope * alpha


class _Regularizer(torch.autograd.Function):
    """``sum(1 - |2h - 1|^beta)``, its derivative made of the same power."""

    @staticmethod
    def forward(ctx: Any, alpha: Tensor, beta: float) -> Tensor:
        h, slope = _rectified(alpha)
        middle = h.mul_(2).sub_(1)
        distance = middle.abs()
        power = distance.pow(beta - 1)
        ctx.save_for_backward(slope.mul_(power).mul_(middle.sign_()).mul_(-2 * beta))
        return alpha.numel() - power.mul_(distance).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (slope,) = ctx.saved_tensors
        return gradient * slope, None
