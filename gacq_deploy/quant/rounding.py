"""Up or down? Nearest rounding, and AdaRound's learned rounding (Nagel et al. 2020)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gacq_deploy.quant.affine import quantize_codes, spread_scale
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
        return (torch.sigmoid(self.alpha) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)

    def soft_weight(self) -> Tensor:
        """Return the differentiable fake-quantized weight."""
        return (self._floor + self.h()).clamp(self._spec.qmin, self._spec.qmax) * self._scale

    def codes(self) -> Tensor:
        """Return the int8 codes of the hardened rounding: up where h >= 1/2."""
        up = (self.alpha.detach() >= 0).to(self._floor.dtype)
        return (self._floor + up).clamp(self._spec.qmin, self._spec.qmax).to(torch.int8)

    def regularizer(self, beta: float) -> Tensor:
        """Return sum(1 - |2h - 1|^beta), which pushes h to 0 or 1 (AdaRound eq. 24)."""
        return (1 - (2 * self.h() - 1).abs().pow(beta)).sum()
