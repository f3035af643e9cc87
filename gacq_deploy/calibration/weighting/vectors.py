"""How does one calculate with parameters that are many tensors? A vector is a tuple of them."""

# ruff: noqa: N803 (the paper's letters)

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Vector = tuple[Tensor, ...]
"""A point or direction in parameter space, tensor by tensor."""

ABSOLUTE_FLOOR = 1e-30
_RELATIVE_FLOOR = 1e-12
"""A gradient shorter than this share of the longest one has no direction."""


def dot(a: Vector, b: Vector) -> float:
    """Return a . b, summed in float64."""
    parts = [(x.detach().double() * y.detach().double()).sum() for x, y in zip(a, b, strict=True)]
    # one question to the device, however many tensors
    return math.fsum(torch.stack(parts).cpu().tolist()) if parts else 0.0


def norm(a: Vector) -> float:
    """Return ||a||."""
    return math.sqrt(dot(a, a))


def axpy(factor: float, x: Vector, y: Vector) -> Vector:
    """Return factor x + y."""
    return tuple(b + factor * a for a, b in zip(x, y, strict=True))


def scaled(factor: float, x: Vector) -> Vector:
    """Return factor x."""
    return tuple(factor * a for a in x)


def zeros_like(like: Vector) -> Vector:
    """Return a zero vector of the same shapes."""
    return tuple(torch.zeros_like(p) for p in like)


def total_of(vectors: Sequence[Vector]) -> Vector:
    """Return the sum of the vectors."""
    return tuple(torch.stack(parts).sum(0) for parts in zip(*vectors, strict=True))


def mean_of(vectors: Sequence[Vector]) -> Vector:
    """Return the mean of the vectors."""
    return tuple(x / len(vectors) for x in total_of(vectors))


def across(v: Vector, g: Vector) -> Vector:
    """Return the part of v at right angles to g."""
    square = dot(g, g)
    return axpy(-dot(v, g) / square, g, v) if square > 0 else v


def unit_vectors(G: Sequence[Vector]) -> tuple[list[Vector], list[float]]:
    """Return G_t / ||G_t|| and 1 / ||G_t||; both 0 for a gradient without direction."""
    inverse = reciprocals([norm(g) for g in G])
    return [scaled(scale, g) for g, scale in zip(G, inverse, strict=True)], inverse


def reciprocals(norms: Sequence[float]) -> list[float]:
    """Return 1 / x of every norm, 0 where it is negligible."""
    floor = max(ABSOLUTE_FLOOR, _RELATIVE_FLOOR * max(norms, default=0.0))
    return [_reciprocal(x, floor) for x in norms]


def _reciprocal(x: float, floor: float) -> float:
    return 1 / x if x > floor else 0.0


def leaves_of(theta: Vector) -> Vector:
    """Return copies that gradients can be taken in."""
    return tuple(p.detach().clone().requires_grad_() for p in theta)


def gradient_of(
    output: Tensor, leaves: Vector, *, create_graph: bool = False, retain_graph: bool = False
) -> Vector:
    """Return the gradient; a parameter that the output does not depend on has gradient 0."""
    if not output.requires_grad:
        return zeros_like(leaves)
    return torch.autograd.grad(
        output,
        leaves,
        create_graph=create_graph,
        retain_graph=create_graph or retain_graph,
        materialize_grads=True,
    )
