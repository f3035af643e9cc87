"""Smoothing changes who carries the range, never what is computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gacq_deploy.quant.layers import QuantizedLayer, RetrainedNorm, float_mode
from gacq_deploy.quant.prepare import estimate_activation_scales, insert_quantizers
from gacq_deploy.quant.smoothing import (
    ALPHAS,
    BOUND,
    Reader,
    Smoothing,
    SmoothingRows,
    SmoothingSearch,
    channel_range,
    smoothing_factor,
)
from gacq_deploy.quant.trainable import make_trainable, retrained_norms
from gacq_deploy.spec import PlannedSite, QuantPlan, Role, Site, TensorSpec

WEIGHT, INPUT = TensorSpec(bits=8, axis=0, narrow=True), TensorSpec(bits=8)
CHANNELS, OUTLIERS = 24, (3, 17)


def activations(*shape: int, seed: int = 0, outlier: float = 1.0) -> Tensor:
    x = torch.randn(*shape, CHANNELS, generator=torch.Generator().manual_seed(seed))
    x[..., list(OUTLIERS)] *= outlier
    return x


def layer(seed: int = 1) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(CHANNELS, 16).requires_grad_(False)


def factor_of(x: Tensor, weight: Tensor, alpha: float = 0.5) -> Tensor:
    factor = smoothing_factor(channel_range(x), channel_range(weight), alpha)
    assert factor is not None
    return factor


def sqnr(exact: Tensor, other: Tensor) -> float:
    return float(10 * torch.log10(exact.pow(2).sum() / (exact - other).pow(2).sum()))


class Normed(nn.Module):
    """A norm that feeds two linear layers."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm, self.one, self.other = norm, layer(1), layer(2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return torch.cat([self.one(y), self.other(y)], -1)


def normed(kind: Any = nn.LayerNorm) -> Normed:
    norm = kind(CHANNELS).requires_grad_(False)
    generator = torch.Generator().manual_seed(3)
    for parameter in norm.parameters():
        parameter.copy_(torch.randn(CHANNELS, generator=generator))
    norm.weight[list(OUTLIERS)] *= 40
    return Normed(norm)


def quantize(model: Normed, x: Tensor, smoothing: Smoothing | None) -> dict[str, QuantizedLayer]:
    names: tuple[str, ...] = ("one", "other")
    roles: tuple[Role, ...] = ("weight", "input")
    entries = [
        PlannedSite(
            Site(n, r),
            WEIGHT if r == "weight" else INPUT,
            "one:input" if r == "input" else f"{n}:{r}",
            "minmax",
        )
        for n in names
        for r in roles
    ]
    plan = QuantPlan(tuple(entries))
    smoothed = {} if smoothing is None else dict.fromkeys(names, smoothing)
    scales = estimate_activation_scales(model, plan, lambda: [model(x)], smoothed)
    return insert_quantizers(model, plan, scales, smoothed)


@settings(max_examples=60, deadline=None)
@given(
    alpha=st.floats(0, 1),
    sizes=st.lists(st.floats(-4, 4), min_size=2 * CHANNELS, max_size=2 * CHANNELS),
    seed=st.integers(0, 99),
)
def test_the_float_function_stays(alpha: float, sizes: list[float], seed: int) -> None:
    spread = 10 ** torch.tensor(sizes)
    x = activations(8, seed=seed) * spread[:CHANNELS]
    weight = layer(seed).weight * spread[CHANNELS:]
    smoothing = Smoothing(factor_of(x, weight, alpha), alpha)
    exact, smoothed = x @ weight.T, smoothing.input(x) @ smoothing.weight(weight).T
    # relative to what is summed: sums may cancel
    assert float(((exact - smoothed).abs() / (x.abs() @ weight.abs().T)).max()) < 1e-5


def test_the_factor_is_the_papers() -> None:
    a, w = torch.tensor([8.0, 2.0, 1.0, 0.5]), torch.tensor([1.0, 2.0, 4.0, 1.0])
    s = a**0.3 / w**0.7
    s = s / s.log().mean().exp()
    factor = smoothing_factor(a, w, 0.3)
    assert factor is not None
    torch.testing.assert_close(factor, 1 / s)
    even = smoothing_factor(a, w, 1.0)
    assert even is not None
    torch.testing.assert_close(a * even, (a * even).mean().expand(4))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_dead_channels_and_extremes_stay_within_bounds(alpha: float) -> None:
    a = torch.tensor([0.0, 1e9, 1.0, 1.0, 2.0])
    w = torch.tensor([1.0, 1.0, 0.0, 1e-9, 3.0])
    factor = smoothing_factor(a, w, alpha)
    assert factor is not None
    assert bool(torch.isfinite(factor).all())
    assert float(factor[0]) == 1.0
    assert float(factor.min()) >= 1 / BOUND * 0.999
    assert float(factor.max()) <= BOUND * 1.001


def test_nothing_alive_is_not_smoothed() -> None:
    assert smoothing_factor(torch.zeros(3), torch.ones(3), 0.5) is None
    assert smoothing_factor(torch.ones(3), torch.zeros(3), 0.5) is None


def test_planted_outliers_cost_several_decibels_without_smoothing() -> None:
    x = activations(64, 8, outlier=60)

    def level(alpha: float | None) -> float:
        model = Normed(nn.Identity())
        for linear in (model.one, model.other):
            linear.weight[:, list(OUTLIERS)] /= 60
        exact = model(x)
        weight = torch.cat([model.one.weight, model.other.weight])
        quantize(model, x, None if alpha is None else Smoothing(factor_of(x, weight, alpha), alpha))
        return sqnr(exact, model(x))

    assert level(0.5) > level(None) + 10


@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.RMSNorm])
def test_a_norm_carries_what_a_multiplication_would(kind: Any) -> None:
    x = activations(32, 4)
    plain = normed(kind)
    exact, y = plain(x), plain.norm(x)
    weight = torch.cat([plain.one.weight, plain.other.weight])
    factor = factor_of(y, weight)
    power_of_two = torch.exp2(factor.log2().round())
    answers = []
    for norm in (None, "norm"):
        for chosen in (power_of_two, factor):
            model = normed(kind)
            layers = quantize(model, x, Smoothing(chosen, 0.5, norm))
            assert isinstance(model.norm, RetrainedNorm) is (norm is not None)
            answers.append(model(x))
            assert layers["one"].input_quantizer is layers["other"].input_quantizer
            with float_mode(model):
                torch.testing.assert_close(model(x), exact, rtol=0, atol=0)
    assert torch.equal(answers[0], answers[2])
    # otherwise a last bit may put a value on the other side of a rounding tie
    assert sqnr(answers[1], answers[3]) > 55
    model = normed(kind)
    quantize(model, x, None)
    assert sqnr(exact, answers[1]) > sqnr(exact, model(x)) + 3


def test_the_polish_goes_on_from_a_smoothed_norm() -> None:
    x = activations(32, 4)
    model = normed()
    weight = torch.cat([model.one.weight, model.other.weight])
    smoothing = Smoothing(factor_of(model.norm(x), weight), 0.5, "norm")
    layers = quantize(model, x, smoothing)
    before = model(x)
    trainables = make_trainable(model, layers, ("norm_affines",))
    assert list(retrained_norms(model)) == ["norm"]
    assert torch.equal(model(x), before)
    own = normed().norm
    assert isinstance(own, nn.LayerNorm)
    torch.testing.assert_close(trainables.retrained()["norm.weight"], own.weight * smoothing.factor)
    assert all(p.requires_grad for p in trainables.parameters.values())


def search(outlier: float, bits: int = 8) -> SmoothingSearch:
    def half(seed: int) -> SmoothingRows:
        x = activations(256, seed=seed, outlier=outlier)
        return SmoothingRows(x[:64], channel_range(x))

    weight = layer().weight.clone()
    weight[:, list(OUTLIERS)] /= outlier
    return SmoothingSearch(
        (half(1), half(2)), [Reader(weight, WEIGHT.model_copy(update={"bits": bits}), "mse")], INPUT, "minmax"
    )


@pytest.mark.parametrize("bits", [4, 8])
def test_the_search_finds_the_least_error(bits: int) -> None:
    task = search(50, bits)
    best = task.best()
    assert best is not None
    errors = {alpha: task.error(alpha) for alpha in (None, *ALPHAS)}
    assert errors[best] == min(errors.values())
    if bits == 8:
        assert errors[best] < errors[None] / 4


def test_the_search_leaves_alone_what_smoothing_makes_worse() -> None:
    """Every channel was seen at its own largest, in one row: the other half goes further wherever it can."""
    generator = torch.Generator().manual_seed(0)
    halves = []
    for seed in (0, 1):
        x = torch.randn(64, CHANNELS, generator=generator)
        # each half has its own loud channels
        x[:, seed::2] *= 30
        halves.append(SmoothingRows(x, channel_range(x)))
    task = SmoothingSearch(
        (halves[0], halves[1]), [Reader(layer().weight, WEIGHT, "minmax")], INPUT, "minmax"
    )
    assert task.best() is None
