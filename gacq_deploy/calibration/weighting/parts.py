"""What is the gradient of losses whose rows do not all fit into memory? Sums over parts, one part's graph at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gacq_deploy.calibration.weighting.vectors import Vector, gradient_of, leaves_of, total_of

Losses = Callable[[Vector], Tensor]
"""Parameters -> losses: [B] of the training rows, or a scalar of one validation group."""


@dataclass(frozen=True)
class InParts:
    """Losses of rows that do not fit into memory at once, part by part, in the rows' order.

    Called, it joins what the parts return: a batch's losses, or one group's loss, of which each part gives its share.
    """

    parts: tuple[Losses, ...]

    def __call__(self, theta: Vector) -> Tensor:
        """Return the losses [B], or their sum where the parts are scalars."""
        values = [part(theta) for part in self.parts]
        return torch.cat(values) if values[0].ndim else torch.stack(values).sum()


@dataclass(frozen=True)
class Pull:
    """J^T u at some theta as a graph in ``u`` [B], linear in it: its value, and J v by differentiating it along v."""

    gradient: Vector
    u: Tensor

    @classmethod
    def of(cls, losses: Losses, theta: Vector, u: Tensor | None = None) -> Pull:
        """Return J^T u of the losses [B], of u = 0 by default; one graph serves every direction."""
        leaves = leaves_of(theta)
        with torch.enable_grad():
            values = losses(leaves)
            u = (torch.zeros_like(values) if u is None else u).detach().clone().requires_grad_()
            return cls(gradient_of((u * values).sum(), leaves, create_graph=True), u)

    def along(self, directions: Sequence[Vector]) -> list[Tensor]:
        """Return J v [B] for every v."""
        found = []
        with torch.enable_grad():
            for v in directions:
                product = torch.stack([(g * d).sum() for g, d in zip(self.gradient, v, strict=True)]).sum()
                found.append(gradient_of(product, (self.u,), retain_graph=True)[0])
        return found


def gradient_at(loss: Losses, theta: Vector) -> Vector:
    """Return the gradient of a scalar loss at ``theta``."""
    return value_and_gradient(loss, theta)[1]


def value_and_gradient(loss: Losses, theta: Vector) -> tuple[Tensor, Vector]:
    """Return a scalar loss and its gradient at ``theta``, with no more than one part's graph in memory."""
    leaves = leaves_of(theta)
    values, gradients = [], []
    for part in parts_of(loss):
        with torch.enable_grad():
            value = part(leaves)
            gradients.append(gradient_of(value, leaves))
        values.append(value.detach())
    if len(values) == 1:
        return values[0], gradients[0]
    return torch.stack(values).sum(), total_of(gradients)


def parts_of(losses: Losses) -> tuple[Losses, ...]:
    """Return the parts of losses; those that are whole are one."""
    return losses.parts if isinstance(losses, InParts) else (losses,)


def pulled_back(losses: Losses, theta: Vector, u: Sequence[Tensor]) -> list[Vector]:
    """Return J^T u [P] for every u [B], from one forward pass."""
    leaves, first = leaves_of(theta), 0
    by_part = []
    for part in parts_of(losses):
        with torch.enable_grad():
            values = part(leaves)
            rows = slice(first, first + len(values))
            by_part.append([_gradient(values, one[rows], leaves) for one in u])
        first += len(values)
    return [total_of(vectors) if len(vectors) > 1 else vectors[0] for vectors in zip(*by_part, strict=True)]


def _gradient(values: Tensor, u: Tensor, leaves: Vector) -> Vector:
    return gradient_of((u * values).sum(), leaves, retain_graph=True)
