"""Which derivative rules do a stage's operators have? Tried on the stage itself, and checked against its gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gacq_deploy.calibration.weighting.alignment import (
    Differentiation,
    DirectionalMethod,
    LookAhead,
    directional,
    hessian_vector,
)
from gacq_deploy.calibration.weighting.parts import Losses
from gacq_deploy.calibration.weighting.vectors import Vector, dot

METHODS: tuple[DirectionalMethod, ...] = ("double_backward", "forward", "finite_difference")
"""In the order in which they are tried."""
_ADJOINT = 1e-2
"""Tolerated error of <w, J g> = <J^T w, g>: differences in float32 reach 1e-3; a wrong rule misses by far more."""


@contextmanager
def differentiable_attention() -> Iterator[None]:
    """Choose attention kernels that have every derivative inside the context.

    The fused ones have neither forward-mode nor second derivatives.
    """
    with sdpa_kernel(SDPBackend.MATH):
        yield


@dataclass(frozen=True)
class DifferentiationChoice:
    """What works; ``notes`` name what is not the first choice."""

    how: Differentiation
    notes: tuple[str, ...]


def choose_differentiation(
    step: LookAhead, w: Tensor, validation: Losses, tried: Sequence[DirectionalMethod] = METHODS
) -> DifferentiationChoice | None:
    """Return the first way of differentiating that works here and agrees with the gradient; None if none does.

    ``step.g`` is J^T w by ordinary backward, which the others must agree with: <w, J g> = ||g||^2.
    """
    found = next((method for method in tried if _agrees(step, w, method)), None)
    if found is None:
        return None
    notes = []
    if found != tried[0]:
        notes.append(f"Derivatives along a direction are taken by {found.replace('_', ' ')}.")
    if found == "finite_difference":
        return DifferentiationChoice(Differentiation(found, "finite_difference"), tuple(notes))
    if _runs(lambda: hessian_vector(validation, step.theta_star, step.g, "double_backward")):
        return DifferentiationChoice(Differentiation(found, "double_backward"), tuple(notes))
    notes.append("Second derivatives are differences of gradients.")
    return DifferentiationChoice(Differentiation(found, "finite_difference"), tuple(notes))


def sample_derivatives(losses: Losses, theta: Vector, direction: Vector) -> Tensor:
    """Return J v [B], by double backward where every operator has that rule, else in forward mode."""
    found: list[Tensor] = []
    if not _runs(lambda: found.append(directional(losses, theta, direction, "double_backward"))):
        found.append(directional(losses, theta, direction, "forward"))
    return found[0]


def _agrees(step: LookAhead, w: Tensor, method: DirectionalMethod) -> bool:
    products: list[Tensor] = []
    if not _runs(lambda: products.append(directional(step.train, step.theta, step.g, method))):
        return False
    expected = dot(step.g, step.g)
    found = float((w.double() * products[0].double()).sum())
    return abs(found - expected) <= _ADJOINT * expected


def _runs(call: Callable[[], object]) -> bool:
    """Tell whether torch has the derivative rules that ``call`` needs."""
    try:
        call()
    except torch.OutOfMemoryError:
        # a RuntimeError that says nothing of derivative rules
        raise
    except (NotImplementedError, RuntimeError):
        return False
    return True
