"""The matrix-free meta gradients are the gradients of the paper's objectives, and its identities hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F  # noqa: N812
from torch.nn.attention import SDPBackend, sdpa_kernel

from gacq_deploy.calibration.weighting.alignment import (
    Differentiation,
    LookAhead,
    MetaGradient,
    automatic_eta,
    cosine_matrix,
    directional,
    exact_meta_gradient,
    hessian_vector,
    look_ahead,
    mean_pairwise_cosine,
    mean_pairwise_product,
    mse_meta_gradient,
    reparametrised,
    softmax_chain,
    softmax_weights,
    surrogate_meta_gradient,
    weighted_gradient,
)
from gacq_deploy.calibration.weighting.parts import InParts, Losses, Pull, gradient_at
from gacq_deploy.calibration.weighting.vectors import Vector
from gacq_deploy.quant.layers import ActivationQuantizer, QuantizedLayer
from gacq_deploy.quant.ranges import RangeMethod, weight_scale
from gacq_deploy.quant.rounding import AdaRound, nearest_codes
from gacq_deploy.spec import TensorSpec

GROUPS, BATCH = 4, 12
METHODS = ("forward", "double_backward", "finite_difference")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@dataclass(frozen=True)
class Toy:
    """A tanh layer with soft-rounded weights and a bias, its rows and its validation groups, in float64."""

    theta: Vector
    train: Losses
    validation: list[Losses]
    w: Tensor
    eta: float

    def step(self, how: Differentiation | None = None) -> LookAhead:
        g = weighted_gradient(self.train, self.theta, self.w)
        return LookAhead(self.train, self.theta, g, self.eta, how or Differentiation())


def make_toy(seed: int = 0) -> Toy:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    floor, x, y = normal(5, 3).floor(), normal(BATCH, 5), normal(BATCH, 3)

    def output(theta: Vector, rows: Tensor) -> Tensor:
        alpha, bias = theta
        return torch.tanh(rows @ (0.3 * (floor + torch.sigmoid(alpha) * 1.2 - 0.1)) + bias)

    def group(rows: Tensor, target: Tensor) -> Losses:
        return lambda theta: (output(theta, rows) - target).pow(2).sum(1).mean()

    theta = (normal(5, 3), 0.1 * normal(3))
    return Toy(
        theta=theta,
        train=lambda p: (output(p, x) - y).pow(2).sum(1),
        validation=[group(normal(6, 5), normal(6, 3)) for _ in range(GROUPS)],
        w=torch.softmax(normal(BATCH), 0),
        eta=0.7,
    )


def objective(toy: Toy, w: Tensor, form: str, *, normalised: bool, scale: float | None = None) -> Tensor:
    """Return L_VAL(w) with a full graph through the look-ahead, pair by pair as eqs. 3-5 are written."""
    theta = tuple(p.clone().requires_grad_() for p in toy.theta)
    g = torch.autograd.grad((w * toy.train(theta)).sum(), theta, create_graph=True)
    ahead = tuple(p.detach() - toy.eta * x for p, x in zip(theta, g, strict=True))
    losses = torch.stack([loss(ahead) for loss in toy.validation])
    if form == "mse":
        return losses.mean()
    wrt = ahead if form == "exact" else (w,)
    flat = [
        torch.cat([x.flatten() for x in torch.autograd.grad(loss, wrt, create_graph=True)]) for loss in losses
    ]
    total = torch.zeros((), dtype=torch.float64)
    for t in range(GROUPS):
        for k in range(t):
            product = flat[t] @ flat[k]
            total = total + (product / (flat[t].norm() * flat[k].norm()) if normalised else product)
    factor = (losses.mean().detach() if scale is None else scale) if normalised else 1.0
    return losses.mean() - 0.8 * factor * 2 / (GROUPS * (GROUPS - 1)) * total


def matrix_free(step: LookAhead, validation: list[Losses], form: str, *, normalised: bool) -> MetaGradient:
    if form == "mse":
        return mse_meta_gradient(step, validation)
    find = exact_meta_gradient if form == "exact" else surrogate_meta_gradient
    return find(step, validation, normalised=normalised, lam=0.8)


FORMS = [("mse", False), ("exact", False), ("exact", True), ("surrogate", False), ("surrogate", True)]


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(("form", "normalised"), FORMS)
@pytest.mark.parametrize("method", ["forward", "double_backward"])
def test_matrix_free_gradients_are_those_of_autograd_through_the_look_ahead(
    form: str, normalised: bool, method: str
) -> None:
    toy = make_toy()
    w = toy.w.clone().requires_grad_()
    (expected,) = torch.autograd.grad(objective(toy, w, form, normalised=normalised), w)
    how = Differentiation(directional=method)  # type: ignore[arg-type]
    found = matrix_free(toy.step(how), toy.validation, form, normalised=normalised)
    assert relative_error(found.dw, expected) < 1e-10


def in_parts(losses: Losses, cuts: Sequence[slice], shares: Sequence[float] | None = None) -> InParts:
    """Return the losses row by row as if each part were computed by itself; a group's loss in shares of it."""
    if shares is None:
        return InParts(tuple(lambda p, c=cut: losses(p)[c] for cut in cuts))  # type: ignore[misc]
    return InParts(tuple(lambda p, s=share: s * losses(p) for share in shares))  # type: ignore[misc]


@pytest.mark.parametrize(("form", "normalised"), FORMS)
@pytest.mark.parametrize("method", ["forward", "double_backward"])
@pytest.mark.parametrize("together", [True, False])
def test_in_parts_the_gradients_are_the_same(
    form: str, normalised: bool, method: str, together: bool
) -> None:
    toy, how = make_toy(), Differentiation(directional=method)  # type: ignore[arg-type]
    expected = matrix_free(toy.step(how), toy.validation, form, normalised=normalised)
    train = in_parts(toy.train, [slice(0, 2), slice(2, 3), slice(3, BATCH)])
    validation = [in_parts(loss, [], [0.25, 0.75]) for loss in toy.validation]
    step = replace(Toy(toy.theta, train, [], toy.w, toy.eta).step(how), together=together)
    # graphs of all groups are held of whole groups alone
    groups = toy.validation if together else validation
    found = matrix_free(step, list(groups), form, normalised=normalised)
    assert relative_error(found.dw, expected.dw) < 1e-10
    torch.testing.assert_close(found.losses, expected.losses)


@pytest.mark.parametrize(("form", "normalised"), FORMS)
def test_one_graph_of_the_batch_gives_step_and_derivatives(form: str, normalised: bool) -> None:
    toy = make_toy()
    plain = toy.step(Differentiation(directional="double_backward"))
    pull = Pull.of(toy.train, toy.theta, toy.w)
    for ours, g in zip(pull.gradient, plain.g, strict=True):
        torch.testing.assert_close(ours.detach(), g)
    expected = matrix_free(plain, toy.validation, form, normalised=normalised)
    found = matrix_free(replace(plain, pull=pull), toy.validation, form, normalised=normalised)
    assert relative_error(found.dw, expected.dw) < 1e-10


@pytest.mark.parametrize(("form", "normalised"), FORMS)
def test_matrix_free_gradients_are_central_differences_through_the_softmax(
    form: str, normalised: bool
) -> None:
    toy = make_toy(1)
    tau, h = 0.7, 1e-4
    s = torch.linspace(-1, 1, BATCH, dtype=torch.float64)
    toy = Toy(toy.theta, toy.train, toy.validation, softmax_weights(s, tau), toy.eta)
    found = matrix_free(toy.step(), toy.validation, form, normalised=normalised)
    scale = float(found.losses.mean())

    def value(logits: Tensor) -> float:
        w = softmax_weights(logits, tau).requires_grad_()
        return float(objective(toy, w, form, normalised=normalised, scale=scale).detach())

    units = torch.eye(BATCH, dtype=torch.float64)
    expected = torch.tensor(
        [
            (8 * (value(s + h * e) - value(s - h * e)) - value(s + 2 * h * e) + value(s - 2 * h * e))
            / (12 * h)
            for e in units
        ]
    ).double()
    assert relative_error(softmax_chain(found.dw, toy.w, tau), expected) < 1e-5


@pytest.mark.parametrize(("form", "normalised"), FORMS)
def test_differences_in_place_of_derivative_rules_come_close(form: str, normalised: bool) -> None:
    toy = make_toy(2)
    exact = matrix_free(toy.step(), toy.validation, form, normalised=normalised)
    how = Differentiation("finite_difference", "finite_difference")
    close = matrix_free(toy.step(how), toy.validation, form, normalised=normalised)
    assert relative_error(close.dw, exact.dw) < 1e-6


@pytest.mark.parametrize(("form", "normalised"), FORMS)
def test_the_parts_and_the_logged_values_are_those_of_the_objective(form: str, normalised: bool) -> None:
    toy = make_toy(3)
    found = matrix_free(toy.step(), toy.validation, form, normalised=normalised)
    whole = float(objective(toy, toy.w.clone().requires_grad_(), form, normalised=normalised).detach())
    assert float(found.losses.mean()) + found.matching == pytest.approx(whole, rel=1e-12)
    assert torch.equal(found.dw, found.dw_mse + found.dw_gm)
    mse = mse_meta_gradient(toy.step(), toy.validation)
    assert relative_error(found.dw_mse, mse.dw) < 1e-12
    assert found.mean_cosine == pytest.approx(mean_pairwise_cosine(found.G))


@pytest.mark.parametrize("method", METHODS)
def test_directional_derivatives_are_products_with_every_samples_gradient(method: str) -> None:
    toy = make_toy()
    v = tuple(torch.randn_like(p) for p in toy.theta)
    rows = [weighted_gradient(toy.train, toy.theta, e) for e in torch.eye(BATCH, dtype=torch.float64)]
    expected = torch.stack([sum((a * b).sum() for a, b in zip(row, v, strict=True)) for row in rows])  # type: ignore[misc]
    found = directional(toy.train, toy.theta, v, method)  # type: ignore[arg-type]
    assert relative_error(found, expected) < (1e-8 if method == "finite_difference" else 1e-13)


@pytest.mark.parametrize("method", METHODS)
def test_directional_of_a_loss_that_ignores_the_parameters_is_zero(method: str) -> None:
    theta = (torch.ones(3, dtype=torch.float64),)
    found = directional(lambda _: torch.ones(4, dtype=torch.float64), theta, theta, method)  # type: ignore[arg-type]
    assert torch.equal(found, torch.zeros(4, dtype=torch.float64))


@pytest.mark.parametrize("method", ["double_backward", "finite_difference"])
def test_hessian_vector_products(method: str) -> None:
    matrix = torch.randn(6, 6, dtype=torch.float64)
    matrix = matrix + matrix.T
    theta, v = (torch.randn(6, dtype=torch.float64),), (torch.randn(6, dtype=torch.float64),)

    def quadratic(p: Vector) -> Tensor:
        return p[0] @ matrix @ p[0] / 2

    (found,) = hessian_vector(quadratic, theta, v, method)  # type: ignore[arg-type]
    assert relative_error(found, matrix @ v[0]) < 1e-8
    assert hessian_vector(lambda p: p[0].sum(), theta, v, method)[0].abs().max() < 1e-9  # type: ignore[arg-type]
    zero = (torch.zeros(6, dtype=torch.float64),)
    assert not hessian_vector(quadratic, theta, zero, method)[0].any()  # type: ignore[arg-type]


def test_the_look_ahead_is_affine_in_the_weights() -> None:
    toy = make_toy()
    w1, w2 = toy.w, toy.w.flip(0)

    def ahead(w: Tensor) -> Vector:
        return look_ahead(toy.theta, weighted_gradient(toy.train, toy.theta, w), toy.eta)

    parts = zip(ahead(w1), ahead(w2), ahead(0 * w1), ahead(w1 + w2), strict=True)
    for one, two, none, both in parts:
        assert torch.allclose(one + two - none, both, rtol=0, atol=1e-14)


def test_the_automatic_step_has_the_asked_root_mean_square() -> None:
    g = (torch.randn(7, 3), torch.randn(11))
    moved = torch.cat([(automatic_eta(g, 0.1) * x).flatten() for x in g])
    assert float(moved.pow(2).mean().sqrt()) == pytest.approx(0.1)
    assert automatic_eta((torch.zeros(3),), 0.1) == 0.0


def test_the_softmax_chain_is_the_jacobian_and_ignores_shifts() -> None:
    s, tau = torch.randn(9, dtype=torch.float64), 0.6
    dw = torch.randn(9, dtype=torch.float64)
    w = softmax_weights(s, tau)
    jacobian = torch.autograd.functional.jacobian(lambda x: softmax_weights(x, tau), s)
    assert torch.allclose(softmax_chain(dw, w, tau), jacobian.T @ dw, rtol=0, atol=1e-15)
    assert torch.allclose(softmax_weights(s + 5, tau), w, rtol=1e-14, atol=0)
    assert torch.allclose(softmax_chain(dw + 3, w, tau), softmax_chain(dw, w, tau), rtol=0, atol=1e-15)
    assert torch.allclose(softmax_weights(s, 1e12), torch.full((9,), 1 / 9).double(), atol=1e-10)


def test_a_metric_scales_the_inner_product_and_the_step() -> None:
    toy, metric = make_toy(), (0.5, 3.0)
    phi = tuple(p / m for p, m in zip(toy.theta, metric, strict=True))
    g = weighted_gradient(toy.train, toy.theta, toy.w)
    renamed = weighted_gradient(reparametrised(toy.train, metric), phi, toy.w)
    ahead = look_ahead(phi, renamed, toy.eta)
    for p, m, a, x, y in zip(toy.theta, metric, ahead, g, renamed, strict=True):
        assert torch.allclose(y, m * x)
        assert torch.allclose(m * a, p - toy.eta * m**2 * x)


# --------------------------------------------------------------------------------------------- pairs of gradients


vectors = st.lists(st.lists(st.floats(-100, 100), min_size=5, max_size=5), min_size=2, max_size=6)


def split(rows: list[list[float]]) -> list[Vector]:
    tensors = [torch.tensor(row, dtype=torch.float64) for row in rows]
    return [(t[:2], t[2:].reshape(3, 1)) for t in tensors]


@given(vectors)
@settings(deadline=None)
def test_the_mean_pairwise_product_is_the_mean_over_pairs(rows: list[list[float]]) -> None:
    flat = torch.tensor(rows, dtype=torch.float64)
    pairs = [float(flat[t] @ flat[k]) for t in range(len(rows)) for k in range(t)]
    scale = float(flat.pow(2).sum()) + 1
    assert mean_pairwise_product(split(rows)) == pytest.approx(sum(pairs) / len(pairs), abs=1e-12 * scale)


@given(vectors)
@settings(deadline=None)
def test_cosines_are_symmetric_bounded_and_average_to_the_mean(rows: list[list[float]]) -> None:
    G = split(rows)  # noqa: N806
    matrix = cosine_matrix(G)
    assert bool(torch.isfinite(matrix).all())
    assert torch.equal(matrix, matrix.T)
    assert float(matrix.abs().max()) <= 1
    upper = matrix[torch.triu_indices(len(G), len(G), 1).unbind()]
    assert mean_pairwise_cosine(G) == pytest.approx(float(upper.mean()), abs=1e-9)


def test_zero_gradients_have_cosine_zero() -> None:
    zero, one = (torch.zeros(3),), (torch.ones(3),)
    assert mean_pairwise_cosine([zero, zero]) == 0.0
    expected = torch.tensor([[0.0, 0, 0], [0, 1, 1], [0, 1, 1]]).double()
    assert torch.allclose(cosine_matrix([zero, one, one]), expected)
    assert mean_pairwise_product([one]) == 0.0


@pytest.mark.parametrize(("form", "normalised"), FORMS)
def test_a_group_at_its_minimum_and_equal_groups_give_finite_gradients(form: str, normalised: bool) -> None:
    toy = make_toy()
    flat: Losses = lambda p: 0.0 * p[0].sum() + 1.0  # noqa: E731
    for validation in ([flat, toy.validation[0]], [flat, flat], [toy.validation[0]] * 3):
        found = matrix_free(toy.step(), validation, form, normalised=normalised)
        assert bool(torch.isfinite(found.dw).all())


# -------------------------------------------------------------------------------------------- the modules of a model


def block_losses(block: nn.Module, theta_names: list[str], x: Tensor, y: Tensor) -> Losses:
    def losses(theta: Vector) -> Tensor:
        output: Tensor = functional_call(block, dict(zip(theta_names, theta, strict=True)), (x,))
        return (output - y).pow(2).flatten(1).mean(1)

    return losses


def mean_of(losses: Losses) -> Losses:
    return lambda theta: losses(theta).mean()


def quantized_conv_block() -> nn.Module:
    """Return GroupNorm, SiLU and a soft-rounded W4A8 convolution whose input clips a little."""
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 4, 3, padding=1)
    spec = TensorSpec(bits=4, axis=0, narrow=True)
    scale = weight_scale(conv.weight.detach(), spec, RangeMethod("mse", 2.4))
    quantizer = ActivationQuantizer(TensorSpec(bits=4), 0.2)
    layer = QuantizedLayer(
        conv, spec, scale, nearest_codes(conv.weight.detach(), scale, spec), quantizer, None
    )
    layer.rounding = AdaRound(conv.weight.detach(), scale, spec)
    return nn.Sequential(nn.GroupNorm(2, 4), nn.SiLU(), layer)


class Attention(nn.Module):
    """Self-attention as diffusers calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)


CONV_THETA = ["2.rounding.alpha", "2.input_quantizer.log_gain", "2.layer.bias", "0.weight"]
BLOCKS: dict[str, tuple[Callable[[], nn.Module], list[str], tuple[int, ...]]] = {
    "conv": (quantized_conv_block, CONV_THETA, (4, 6, 6)),
    "attention": (Attention, ["qkv.weight", "qkv.bias"], (5, 8)),
}


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("method", ["forward", "double_backward"])
def test_quantized_convolutions_and_attention_have_both_derivative_rules(name: str, method: str) -> None:
    make, names, shape = BLOCKS[name]
    block = make()
    parameters = dict(block.named_parameters())
    theta = tuple(parameters[n].detach() for n in names)
    torch.manual_seed(1)
    x = torch.randn(BATCH, *shape)
    with sdpa_kernel(SDPBackend.MATH):
        y = 0.5 * torch.randn_like(block(x)).detach()
        train = block_losses(block, names, x, y)
        rows = [weighted_gradient(train, theta, e) for e in torch.eye(BATCH)]
        v = tuple(torch.randn_like(p) for p in theta)
        expected = torch.stack([sum((a * b).sum() for a, b in zip(r, v, strict=True)) for r in rows])  # type: ignore[misc]
        assert relative_error(directional(train, theta, v, method), expected) < 1e-4  # type: ignore[arg-type]
        validation = [mean_of(block_losses(block, names, x[i::3], y[i::3])) for i in range(3)]
        g = weighted_gradient(train, theta, torch.full((BATCH,), 1 / BATCH))
        step = LookAhead(train, theta, g, automatic_eta(g, 0.02), Differentiation(method))  # type: ignore[arg-type]
        found = exact_meta_gradient(step, validation, normalised=True, lam=1.0)
    assert bool(torch.isfinite(found.dw).all())
    assert float(found.dw.abs().max()) > 0
    other = Differentiation("double_backward" if method == "forward" else "forward")
    with sdpa_kernel(SDPBackend.MATH):
        again = exact_meta_gradient(
            LookAhead(train, theta, g, step.eta, other), validation, normalised=True, lam=1.0
        )
    assert relative_error(found.dw, again.dw) < 1e-4


def test_forward_mode_takes_the_straight_through_path_although_no_graph_is_asked_for() -> None:
    block = quantized_conv_block()
    names = ["2.input_quantizer.log_gain"]
    x, y = torch.randn(3, 4, 6, 6), torch.zeros(3, 4, 6, 6)
    train = block_losses(block, names, x, y)
    theta = (torch.tensor(0.1),)
    (slope,) = gradient_at(lambda p: train(p).sum(), theta)
    products = directional(train, theta, (torch.ones(()),), "forward")
    assert float(products.sum()) == pytest.approx(float(slope), rel=1e-4)
