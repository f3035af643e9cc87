"""What does an INT8 engine do to a number? Symmetric affine quantization, exactly as the engines compute it."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gacq_deploy.spec import TensorSpec


def fake_quantize(x: Tensor, scale: Tensor, qmin: int, qmax: int) -> Tensor:
    """Return ``clamp(round(x / scale), qmin, qmax) * scale``: the float value an INT8 engine works with.

    ``x`` float32 of any shape, ``scale`` float32, scalar or broadcastable, > 0. Differentiable in ``x`` and
    ``scale``; the gradient in ``scale`` is LSQ's (Esser et al. 2020), without its scaling factor.
    """
    quantized: Tensor = _FakeQuantize.apply(x, scale, qmin, qmax)  # type: ignore[no-untyped-call]
    return quantized


class _FakeQuantize(torch.autograd.Function):
    """One buffer forward, two backward: written out, autograd keeps five and passes over ten.

    Where derivatives are themselves differentiated, it is written out.
    """

    @staticmethod
    def forward(x: Tensor, scale: Tensor, qmin: int, qmax: int) -> Tensor:
        return (x / scale).round_().clamp_(qmin, qmax).mul_(scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        del output
        x, scale, *ctx.bounds = inputs
        ctx.save_for_backward(x, scale)
        ctx.save_for_forward(x, scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, scale = ctx.saved_tensors
        if torch.is_grad_enabled():
            wanted = [t for t, needed in zip((x, scale), ctx.needs_input_grad, strict=False) if needed]
            found = iter(
                torch.autograd.grad(_written_out(x, scale, *ctx.bounds), wanted, gradient, create_graph=True)
            )
            return *(next(found) if needed else None for needed in ctx.needs_input_grad[:2]), None, None
        ratio = x / scale
        codes = ratio.round()
        by_x = within(gradient, codes, *ctx.bounds) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return by_x, None, None, None
        slope = _slope_in_scale(ratio, codes, *ctx.bounds)
        return by_x, slope.mul_(gradient).sum_to_size(scale.shape), None, None

    @staticmethod
    def jvp(ctx: Any, x: Tensor | None, scale: Tensor | None, *_: Any) -> Tensor:
        given, step = ctx.saved_tensors
        ratio = given / step
        codes = ratio.round()
        along = torch.zeros_like(ratio) if x is None else within(x, codes, *ctx.bounds)
        return along if scale is None else along + _slope_in_scale(ratio, codes, *ctx.bounds) * scale


def within(values: Tensor, codes: Tensor, low: float, high: float) -> Tensor:
    """Return ``values`` where ``low <= codes <= high``, 0 elsewhere; what a clamp's gradient is, in one pass."""
    inside: Tensor = torch.ops.aten.hardtanh_backward(values, codes, _below(low), -_below(-high))
    return inside


@cache
def _below(bound: float) -> float:
    """Return the float32 before ``bound``: the operator's range is open."""
    return float(np.nextafter(np.float32(bound), np.float32(-np.inf)))


def _slope_in_scale(ratio: Tensor, codes: Tensor, low: int, high: int) -> Tensor:
    """Return the derivative of the quantized value in the scale (LSQ): code minus ratio, outside the bound."""
    return codes.clamp(low, high).sub_(within(ratio, codes, low, high))


def _written_out(x: Tensor, scale: Tensor, qmin: int, qmax: int) -> Tensor:
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
