"""Range estimators find what a brute-force search finds, whatever the chunks."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gacq_deploy.quant.affine import channel_shape, fake_quantize
from gacq_deploy.quant.ranges import DEAD_SCALE, ESTIMATORS, ActivationRange, RangeMethod, weight_scale
from gacq_deploy.recipe.quantization import RANGE_METHODS
from gacq_deploy.spec import TensorSpec

W4 = TensorSpec(bits=4, axis=0, narrow=True)
A8 = TensorSpec(bits=8)


def heavy_tailed(*shape: int, seed: int = 0) -> torch.Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return x * x.abs()


@settings(max_examples=15, deadline=None)
@given(
    bits=st.integers(3, 8),
    narrow=st.booleans(),
    p=st.sampled_from([1, 2, 2.4, 4]),
    spread=st.sampled_from([0.0, 1.0, 3.0]),
    seed=st.integers(0, 99),
)
def test_leaving_rows_early_finds_what_trying_all_scales_does(
    bits: int, narrow: bool, p: float, spread: float, seed: int
) -> None:
    weight = heavy_tailed(12, 40, seed=seed) * torch.linspace(0.1, 3, 12)[:, None].pow(spread)
    spec = TensorSpec(bits=bits, axis=0, narrow=narrow)
    rows = weight.double()
    widest = rows.abs().amax(1) / spec.qmax
    candidates = torch.stack([widest * r for r in torch.linspace(0.2, 1.0, 81, dtype=torch.float64).flip(0)])
    errors = torch.stack(
        [
            (rows - fake_quantize(rows, c[:, None], spec.qmin, spec.qmax)).abs().pow(p).sum(1)
            for c in candidates
        ]
    )
    first = [column.index(min(column)) for column in errors.T.tolist()]
    best = candidates[first, torch.arange(12)]
    assert torch.equal(weight_scale(weight, spec, RangeMethod("mse", p)), best.float())


def observe(chunks: list[torch.Tensor]) -> ActivationRange:
    found = ActivationRange(max(float(chunk.abs().amax()) for chunk in chunks))
    for chunk in chunks:
        found.observe_histogram(chunk)
    return found


def test_weight_minmax_reaches_the_largest_value_of_each_channel() -> None:
    w = heavy_tailed(6, 20)
    assert torch.allclose(weight_scale(w, W4, RangeMethod("minmax")), w.abs().amax(1) / 7)


def test_weight_mse_beats_every_neighbouring_scale() -> None:
    w = heavy_tailed(6, 200)
    chosen = weight_scale(w, W4, RangeMethod("mse", 2.0))

    def error(scale: torch.Tensor) -> torch.Tensor:
        return (w - fake_quantize(w, channel_shape(scale, 2, 0), -7, 7)).pow(2).sum(1)

    best = error(chosen)
    for ratio in torch.linspace(0.15, 1.0, 60):
        candidate = w.abs().amax(1) / 7 * ratio
        # the search is a grid: a finer candidate may win by the curvature between two grid points
        assert bool((best <= error(candidate) * 1.03).all())
    assert bool((best < error(w.abs().amax(1) / 7)).all())


@pytest.mark.parametrize("method", ["minmax", "mse:2.4", "percentile:99"])
def test_dead_channels_get_a_scale_that_overflows_nothing(method: str) -> None:
    w = heavy_tailed(4, 50)
    w[1], w[2] = 0.0, w[2] * 1e-9
    scale = weight_scale(w, W4, RangeMethod.parse(method))
    alive = scale[[0, 3]]
    assert bool((scale[[1, 2]] >= 0.2 * alive.min()).all())
    assert bool((weight_scale(torch.zeros(3, 4), W4, RangeMethod.parse(method)) > 0.1).all())
    for dead in (torch.zeros(10), torch.full((10,), 1e-40)):
        assert observe([dead]).scale(A8, RangeMethod.parse(method)) == DEAD_SCALE


@settings(max_examples=25, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 999), max_size=5),
    method=st.sampled_from(["minmax", "mse:2.4", "percentile:99.9"]),
)
def test_activation_scale_does_not_depend_on_the_chunks(cuts: list[int], method: str) -> None:
    x = heavy_tailed(1000)
    bounds = [0, *sorted(set(cuts)), 1000]
    chunks = [x[a:b] for a, b in pairwise(bounds)]
    parsed = RangeMethod.parse(method)
    assert observe(chunks).scale(A8, parsed) == observe([x]).scale(A8, parsed)


def test_activation_percentile_and_mse_against_the_exact_values() -> None:
    x = heavy_tailed(20_000)
    found = observe([x])
    exact = float(torch.quantile(x.abs().double(), 0.999)) / 127
    assert found.scale(A8, RangeMethod("percentile", 99.9)) == pytest.approx(exact, rel=0.01)
    chosen = found.scale(TensorSpec(bits=4), RangeMethod("mse", 2.0))

    def error(scale: float) -> float:
        return float((x - fake_quantize(x, torch.tensor(scale), -8, 7)).pow(2).sum())

    top = float(x.abs().max()) / 7
    assert error(chosen) <= min(error(top * r / 100) for r in range(20, 101, 2)) * 1.02
    assert error(chosen) < 0.5 * error(top)


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown range method 'entropy', known are minmax, "):
        RangeMethod.parse("entropy")


def test_every_method_that_a_recipe_may_name_has_its_estimator() -> None:
    assert set(RANGE_METHODS) == set(ESTIMATORS)
