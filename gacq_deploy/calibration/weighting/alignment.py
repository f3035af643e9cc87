"""Which sample weights make the groups' gradients agree? The mathematics of GAC (arXiv 2602.01289), free of any model.

The paper's letters: parameters ``theta``, sample weights ``w`` [B], per-sample losses l [B] of the training rows,
validation losses L_t of T timestep groups, and

    (1) l_i    = || f(theta_FP, x_i) - f(theta, x_i) ||^2
    (2) theta* = theta - eta J^T w                              J [B, P] has the rows g_i = d l_i / d theta
    (3) w      = argmin L_VAL(theta*(w)),   L_VAL = L_GM + mean_t L_t
    (4) L_GM   = -c sum_{t<k} G_t . G_k     G_t  = d L_t / d theta*,   c = 2 / (T (T - 1))
    (5) L_GM   = -c sum_{t<k} Gw_t . Gw_k   Gw_t = d L_t(theta*(w)) / d w = -eta J G_t      (the paper's surrogate)

theta* is affine in w, so nothing of third order occurs and J is never stored: J^T u is one backward pass, J v one
forward-mode pass, and a group's Hessian is only ever multiplied by a vector. ``normalised`` replaces the inner
products by cosines times the mean validation loss, held constant: a raw product grows with the gradients themselves,
and its minimum is then where they are largest.

Parameters of unlike scale (rounding logits beside log activation scales) are compared by a diagonal metric m: rename
theta_i = m_i phi_i with ``reparametrised`` and do everything in phi. Inner products are then
sum_i m_i^2 a_i b_i in terms of theta's gradients, and the look-ahead steps theta_i - eta m_i^2 g_i.
"""

# ruff: noqa: N803, N806 (the paper's letters)

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad

from gacq_deploy.calibration.weighting.parts import (
    InParts,
    Losses,
    Pull,
    gradient_at,
    pulled_back,
    value_and_gradient,
)
from gacq_deploy.calibration.weighting.vectors import (
    ABSOLUTE_FLOOR,
    Vector,
    across,
    axpy,
    dot,
    gradient_of,
    leaves_of,
    mean_of,
    norm,
    reciprocals,
    scaled,
    total_of,
    unit_vectors,
    zeros_like,
)

DirectionalMethod = Literal["forward", "double_backward", "finite_difference"]
HessianMethod = Literal["double_backward", "finite_difference"]


@dataclass(frozen=True)
class Differentiation:
    """How J v and H v are formed: some operators lack a forward-mode or a second-derivative rule.

    Finite differences see the function itself; through straight-through rounding they disagree with its gradient.
    """

    directional: DirectionalMethod = "forward"
    hessian: HessianMethod = "double_backward"


@dataclass(frozen=True)
class LookAhead:
    """One step of eq. 2 from ``theta``: ``g`` = J^T w, step length ``eta``; ``train`` gives l [B].

    ``unit``: ``eta`` is understood as proportional to 1 / ||g||, so the weights turn the step and cannot lengthen it;
    otherwise it is a constant, and a sample gains weight by having a large gradient. ``pull`` is J^T u as a graph in u,
    where one is held. ``together``: the graphs of all validation groups fit into memory at once.
    """

    train: Losses
    theta: Vector
    g: Vector
    eta: float
    how: Differentiation = Differentiation()
    unit: bool = False
    pull: Pull | None = None
    together: bool = True

    @property
    def theta_star(self) -> Vector:
        """Return theta*(w)."""
        return look_ahead(self.theta, self.g, self.eta)

    def chain(self, directions: Sequence[Vector]) -> list[Tensor]:
        """Return (d theta*/dw)^T v [B] for every v: -eta J v, and for a unit step -eta J (v - g (g . v) / ||g||^2)."""
        turned = directions
        if self.unit:
            turned = [across(v, self.g) for v in directions]
        return [-self.eta * x for x in self.along(turned)]

    def along(self, directions: Sequence[Vector]) -> list[Tensor]:
        """Return J v [B] for every v."""
        if self.pull is not None:
            return self.pull.along(directions)
        return _directionals(self.train, self.theta, directions, self.how.directional)


@dataclass(frozen=True)
class MetaGradient:
    """dL_VAL/dw [B] and its two parts, with what the groups say at theta*.

    ``dw`` = ``dw_mse`` + ``dw_gm``; ``losses`` [T] L_t float64; ``G`` [T] G_t; ``mean_cosine`` over the pairs of G_t;
    ``matching`` the value of the L_GM term, scaled as it entered the objective (0 without one).
    """

    dw_mse: Tensor
    dw_gm: Tensor
    losses: Tensor
    G: tuple[Vector, ...]
    mean_cosine: float
    matching: float

    @property
    def dw(self) -> Tensor:
        """Return dL_VAL/dw."""
        return self.dw_mse + self.dw_gm


# ---------------------------------------------------------------------------------------------------- inner products


def mean_pairwise_product(G: Sequence[Vector]) -> float:
    """Return the mean of G_t . G_k over the pairs t < k: -L_GM of eq. 4; 0 for fewer than two.

    By sum_{t<k} G_t . G_k = (||sum_t G_t||^2 - sum_t ||G_t||^2) / 2.
    """
    if len(G) < 2:
        return 0.0
    total = total_of(G)
    return _pair_factor(len(G)) * (dot(total, total) - sum(dot(g, g) for g in G)) / 2


def mean_direction(G: Sequence[Vector]) -> Vector:
    """Return the mean of G_t / ||G_t||."""
    return mean_of(unit_vectors(G)[0])


def mean_pairwise_cosine(G: Sequence[Vector]) -> float:
    """Return the mean cosine of the pairs t < k, in [-1, 1]; a zero gradient has cosine 0 with every other."""
    return mean_pairwise_product(unit_vectors(G)[0])


def cosine_matrix(G: Sequence[Vector]) -> Tensor:
    """Return the cosines of all pairs, ``[T, T]`` float64, diagonal 1 (0 for a zero gradient)."""
    products = []
    for parts in zip(*G, strict=True):
        rows = torch.stack([p.detach().flatten() for p in parts]).double()
        products.append(rows @ rows.T)
    gram = torch.stack(products).sum(0).cpu()
    inverse = reciprocals([math.sqrt(max(float(x), 0.0)) for x in gram.diagonal()])
    scale = torch.tensor(inverse, dtype=torch.float64)
    # rounding leads beyond 1
    cosines = (gram * torch.outer(scale, scale)).clamp(-1, 1)
    cosines.diagonal().copy_((scale > 0).double())
    return cosines


# --------------------------------------------------------------------------------------------------------- the step


def look_ahead(theta: Vector, g: Vector, eta: float) -> Vector:
    """Return theta - eta g (eq. 2)."""
    return axpy(-eta, g, theta)


def automatic_eta(g: Vector, rms: float) -> float:
    """Return the step length for which eta g has root mean square ``rms``; 0 where g is zero."""
    count = sum(part.numel() for part in g)
    length = norm(g)
    return rms * math.sqrt(count) / length if length > ABSOLUTE_FLOOR else 0.0


def weighted_gradient(losses: Losses, theta: Vector, w: Tensor) -> Vector:
    """Return J^T w, the gradient of sum_i w_i l_i, ``w`` [B] constant."""
    return pulled_back(losses, theta, [w])[0]


def reparametrised(losses: Losses, metric: Sequence[float]) -> Losses:
    """Return ``losses`` as a function of phi, theta_i = m_i phi_i."""
    if isinstance(losses, InParts):
        return InParts(tuple(reparametrised(part, metric) for part in losses.parts))
    return lambda phi: losses(tuple(m * p for m, p in zip(metric, phi, strict=True)))


# ------------------------------------------------------------------------------------------------ products with J, H


def directional(losses: Losses, theta: Vector, direction: Vector, method: DirectionalMethod) -> Tensor:
    """Return J v [B]: the derivative of every sample's loss along ``direction``, i.e. g_i . v.

    forward: one forward-mode pass. double_backward: the product with J^T, differentiated in its argument.
    finite_difference: central, two passes without a graph; for losses that are smooth in theta.
    """
    return _directionals(losses, theta, [direction], method)[0]


def hessian_vector(loss: Losses, theta: Vector, direction: Vector, method: HessianMethod) -> Vector:
    """Return H v of a scalar ``loss``: by double backward, or by a central difference of gradients."""
    if isinstance(loss, InParts):
        return total_of([hessian_vector(part, theta, direction, method) for part in loss.parts])
    if method == "finite_difference":
        h = _difference_step(theta, direction)
        if h == 0:
            return zeros_like(theta)
        above = gradient_at(loss, axpy(h, direction, theta))
        below = gradient_at(loss, axpy(-h, direction, theta))
        return tuple((a - b) / (2 * h) for a, b in zip(above, below, strict=True))
    leaves = leaves_of(theta)
    with torch.enable_grad():
        gradient = gradient_of(loss(leaves), leaves, create_graph=True)
        product = torch.stack([(g * v).sum() for g, v in zip(gradient, direction, strict=True)]).sum()
        return gradient_of(product, leaves)


def _directionals(
    losses: Losses, theta: Vector, directions: Sequence[Vector], method: DirectionalMethod
) -> list[Tensor]:
    if isinstance(losses, InParts):
        by_part = [_directionals(part, theta, directions, method) for part in losses.parts]
        return [torch.cat(products) for products in zip(*by_part, strict=True)]
    if method == "double_backward":
        return Pull.of(losses, theta).along(directions)
    one = _forward if method == "forward" else _central_difference
    return [one(losses, theta, v) for v in directions]


def _forward(losses: Losses, theta: Vector, direction: Vector) -> Tensor:
    # the primals require a gradient: code that takes another path without one (straight-through rounding does)
    # must take the path that is trained; torch.func.jvp hides the flag
    with torch.enable_grad(), forward_ad.dual_level(), warnings.catch_warnings():
        # torch compiles its own forward-mode rules with what it has deprecated
        warnings.filterwarnings("ignore", message="`torch.jit.script", category=DeprecationWarning)
        duals = tuple(_dual(p, v) for p, v in zip(leaves_of(theta), direction, strict=True))
        value, tangent = _unpacked(losses(duals))
    return torch.zeros_like(value).detach() if tangent is None else tangent.detach()


def _dual(primal: Tensor, tangent: Tensor) -> Tensor:
    dual: Tensor = forward_ad.make_dual(primal, tangent)  # type: ignore[no-untyped-call]
    return dual


def _unpacked(dual: Tensor) -> tuple[Tensor, Tensor | None]:
    value, tangent = forward_ad.unpack_dual(dual)  # type: ignore[no-untyped-call]
    return value, tangent


@torch.no_grad()
def _central_difference(losses: Losses, theta: Vector, direction: Vector) -> Tensor:
    h = _difference_step(theta, direction)
    if h == 0:
        return torch.zeros_like(losses(theta))
    return (losses(axpy(h, direction, theta)) - losses(axpy(-h, direction, theta))) / (2 * h)


def _difference_step(theta: Vector, direction: Vector) -> float:
    """Return h: a cube root of the precision relative to theta (to 1 where theta is 0); 0 for a zero direction."""
    length = norm(direction)
    precision = max(torch.finfo(p.dtype).eps for p in theta)
    return 0.0 if length == 0 else precision ** (1 / 3) * (norm(theta) or 1.0) / length


# ------------------------------------------------------------------------------------------------------ dL_VAL / dw


def mse_meta_gradient(step: LookAhead, validation: Sequence[Losses]) -> MetaGradient:
    """Return the gradient of mean_t L_t(theta*(w)) in w: -eta J mean_t G_t."""
    groups = _Groups(step, validation, second_order=False)
    (dw,) = step.chain([mean_of(groups.G)])
    cosine = mean_pairwise_cosine(groups.G)
    return MetaGradient(dw, torch.zeros_like(dw), groups.losses, groups.G, cosine, 0.0)


def exact_meta_gradient(
    step: LookAhead, validation: Sequence[Losses], lam: float, *, normalised: bool
) -> MetaGradient:
    """Return the gradient of L_VAL of eq. 3 and 4 in w: -eta J v.

        v = mean_t G_t - lam scale c sum_t H_t p_t.

    Raw: p_t = sum_{k != t} G_k, scale 1. Normalised, n_t = G_t / ||G_t||, S = sum_t n_t, r_t = S - n_t:
    p_t = (r_t - n_t (n_t . r_t)) / ||G_t||, scale = mean_t L_t held constant.
    """
    groups = _Groups(step, validation, second_order=True)
    losses, G = groups.losses, groups.G
    scale = lam * (float(losses.mean()) if normalised else 1.0)
    pull = _pair_derivatives(G, normalised=normalised)
    curvature = groups.curvature(pull)
    factor = -scale * _pair_factor(len(G))
    dw_mse, dw_gm = step.chain([mean_of(G), scaled(factor, curvature)])
    cosine = mean_pairwise_cosine(G)
    matching = -scale * (cosine if normalised else mean_pairwise_product(G))
    return MetaGradient(dw_mse, dw_gm, losses, G, cosine, matching)


def surrogate_meta_gradient(
    step: LookAhead, validation: Sequence[Losses], lam: float, *, normalised: bool
) -> MetaGradient:
    """Return the gradient of L_VAL of eq. 5 in w.

        mean_t Gw_t - lam scale c eta^2 J sum_t H_t J^T u_t,

    u_t = sum_{k != t} Gw_k raw, or the derivative of the cosines of Gw_t as in ``exact_meta_gradient``.
    """
    groups = _Groups(step, validation, second_order=True)
    losses, G = groups.losses, groups.G
    Gw: list[Vector] = [(-step.eta * x,) for x in step.along(G)]
    scale = lam * (float(losses.mean()) if normalised else 1.0)
    u = _pair_derivatives(Gw, normalised=normalised)
    curvature = groups.curvature(pulled_back(step.train, step.theta, [one for (one,) in u]))
    (dw_gm,) = step.along([curvature])
    dw_gm = -scale * _pair_factor(len(G)) * step.eta**2 * dw_gm
    product = mean_pairwise_cosine(Gw) if normalised else mean_pairwise_product(Gw)
    return MetaGradient(mean_of(Gw)[0], dw_gm, losses, G, mean_pairwise_cosine(G), -scale * product)


def softmax_weights(s: Tensor, tau: float) -> Tensor:
    """Return w_i = exp(s_i / tau) / sum_j exp(s_j / tau) [B]: sum 1."""
    return torch.softmax(s / tau, 0)


def softmax_chain(dw: Tensor, w: Tensor, tau: float) -> Tensor:
    """Return dL/ds [B] from dL/dw, through w = softmax(s / tau): (w / tau) (dw - sum_j w_j dw_j)."""
    return (w / tau) * (dw - (w * dw).sum())


class _Groups:
    """The validation groups at theta*: ``losses`` [T] L_t, ``G`` the G_t, and their Hessians on demand.

    With ``second_order`` the gradients keep their graphs, all groups' at once where they fit into memory, so that one
    backward pass then gives the sum of all Hessian-vector products.
    """

    def __init__(self, step: LookAhead, validation: Sequence[Losses], *, second_order: bool) -> None:
        self._step = step
        self._validation = validation
        self._leaves = leaves_of(step.theta_star)
        keep = second_order and step.together and step.how.hessian == "double_backward"
        found = [
            self._with_graph(loss) if keep else value_and_gradient(loss, self._leaves) for loss in validation
        ]
        self.losses = torch.stack([value for value, _ in found]).cpu().double()
        self.G = tuple(_detached(gradient) for _, gradient in found)
        self._graphs = [gradient for _, gradient in found] if keep else None

    def _with_graph(self, loss: Losses) -> tuple[Tensor, Vector]:
        with torch.enable_grad():
            value = loss(self._leaves)
            return value.detach(), gradient_of(value, self._leaves, create_graph=True)

    def curvature(self, vectors: Sequence[Vector]) -> Vector:
        """Return sum_t H_t v_t."""
        if self._graphs is not None:
            with torch.enable_grad():
                products = [
                    (x * y).sum()
                    for g, v in zip(self._graphs, vectors, strict=True)
                    for x, y in zip(g, v, strict=True)
                ]
                return gradient_of(torch.stack(products).sum(), self._leaves)
        total = zeros_like(self._leaves)
        for loss, vector in zip(self._validation, vectors, strict=True):
            product = hessian_vector(loss, self._step.theta_star, vector, self._step.how.hessian)
            total = axpy(1.0, product, total)
        return total


def _detached(vector: Vector) -> Vector:
    return tuple(x.detach() for x in vector)


def _pair_derivatives(G: Sequence[Vector], *, normalised: bool) -> list[Vector]:
    """Return d/dG_t of the sum over pairs of the products, or of the cosines (0 where a gradient is zero)."""
    if not normalised:
        total = total_of(G)
        return [axpy(-1.0, g, total) for g in G]
    n, inverse = unit_vectors(G)
    total = total_of(n)
    derivatives = []
    for n_t, scale in zip(n, inverse, strict=True):
        r = axpy(-1.0, n_t, total)
        derivatives.append(scaled(scale, axpy(-dot(n_t, r), n_t, r)))
    return derivatives


def _pair_factor(count: int) -> float:
    return 2 / (count * (count - 1)) if count > 1 else 0.0
