"""What does an INT8 engine do to a number? Symmetric affine quantization, exactly as the engines compute it."""

from __future__ import annotations

import torch
from torch import Tensor

from gacq_deploy.spec import TensorSpec


def fake_quantize(x: Tensor, scale: Tensor, qmin: int, qmax: int) -> Tensor:
    """Return ``clamp(round(x / scale), qmin, qmax) * scale``: the float value an INT8 engine works with.

    ``x`` float32 of any shape, ``scale`` float32, scalar or broadcastable, > 0. Differentiable in ``x`` and
    ``scale``; the gradient in ``scale`` is LSQ's (Esser et al. 2020), without its scaling factor.
    """
    if not (x.requires_grad or scale.requires_grad):
        # no graph needs what is in between: one buffer does
        return (x / scale).round_().clamp_(qmin, qmax).mul_(scale)
    codes = x / scale
    # straight through: the value is rounded, the gradient passes as if it were not
    codes = codes + (codes.round() - codes).detach()
    return codes.clamp(qmin, qmax) * scale


def channel_shape(scale: Tensor, ndim: int, axis: int) -> Tensor:
    """Return a per-channel ``scale`` [channels] reshaped to broadcast along ``axis`` of a rank-``ndim`` tensor."""
    shape = [1] * ndim
    shape[axis] = -1
    return scale.reshape(shape)


def spread_scale(scale: Tensor, ndim: int, spec: TensorSpec) -> Tensor:
    """Return a weight's scale, per channel [channels] or per block [out, in / block], so that it broadcasts over it."""
    if spec.block is not None:
        return scale.repeat_interleave(spec.block, dim=1)
    return channel_shape(scale, ndim, spec.axis or 0)


def half_exact(scale: Tensor) -> Tensor:
    """Return block scales, float32, that a float16 graph holds exactly: rounded to it wherever it is normal there.

    TensorRT keeps the dequantization inside the product only if the scales have the product's type.
    """
    half = scale.half().float()
    fits = half.isfinite() & (half >= torch.finfo(torch.float16).smallest_normal)
    return torch.where(fits, half, scale)


def quantize_codes(x: Tensor, scale: Tensor, qmin: int, qmax: int) -> Tensor:
    """Return the int8 codes of ``x``: round half to even, clamp."""
    return (x / scale).round().clamp(qmin, qmax).to(torch.int8)
