"""AdaRound starts at the float weight, ends on the grid, one step from floor at most."""

from __future__ import annotations

from collections.abc import Callable

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gacq_deploy.quant.ranges import RangeMethod, weight_scale
from gacq_deploy.quant.rounding import AdaRound, nearest_codes
from gacq_deploy.spec import TensorSpec


def weight_of(seed: int) -> torch.Tensor:
    return torch.randn(5, 4, 3, 3, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), bits=st.sampled_from([3, 4, 8]))
def test_it_starts_at_the_float_weight_and_hardens_to_nearest(seed: int, bits: int) -> None:
    w, spec = weight_of(seed), TensorSpec(bits=bits, axis=0, narrow=True)
    scale = weight_scale(w, spec, RangeMethod("minmax"))
    rounding = AdaRound(w, scale, spec)
    assert torch.allclose(rounding.soft_weight(), w, atol=float(scale.max()) * 2e-3)
    hard, nearest = rounding.codes(), nearest_codes(w, scale, spec)
    rest = (w / scale.reshape(-1, 1, 1, 1)) % 1
    decided = (rest - 0.5).abs() > 1e-3  # exact ties may go either way
    assert torch.equal(hard[decided], nearest[decided])


def test_codes_stay_in_the_narrow_range_and_follow_alpha() -> None:
    w, spec = weight_of(1), TensorSpec(bits=4, axis=0, narrow=True)
    scale = weight_scale(w, spec, RangeMethod("mse", 2.4))
    rounding = AdaRound(w, scale, spec)
    for push, direction in ((50.0, 1), (-50.0, 0)):
        rounding.alpha.data.fill_(push)
        codes = rounding.codes()
        expected = ((w / scale.reshape(-1, 1, 1, 1)).floor() + direction).clamp(-7, 7)
        assert torch.equal(codes.float(), expected)
        assert codes.dtype == torch.int8
        assert float(rounding.regularizer(2.0).detach()) == 0.0


def test_the_regularizer_pulls_h_away_from_the_middle() -> None:
    w, spec = weight_of(2), TensorSpec(bits=4, axis=0, narrow=True)
    rounding = AdaRound(w, weight_scale(w, spec, RangeMethod("minmax")), spec)
    optimizer = torch.optim.Adam(rounding.parameters(), lr=0.05)

    def undecided() -> int:
        h = rounding.h()
        return int(((h > 0.05) & (h < 0.95)).sum())

    before = undecided()
    for _ in range(200):
        optimizer.zero_grad()
        rounding.regularizer(4.0).backward()
        optimizer.step()
    assert undecided() < before // 10


def test_derivatives_made_in_one_pass_are_those_of_the_formula() -> None:
    w, spec = weight_of(3), TensorSpec(bits=4, axis=0, narrow=True)
    rounding = AdaRound(w, weight_scale(w, spec, RangeMethod("mse", 2.4)), spec)
    scale = weight_scale(w, spec, RangeMethod("mse", 2.4)).reshape(-1, 1, 1, 1)
    with torch.no_grad():
        # some beyond both ends of the rectified sigmoid
        rounding.alpha += 3 * torch.randn(w.shape, generator=torch.Generator().manual_seed(4))

    def formula() -> torch.Tensor:
        return ((w / scale).floor() + rounding.h()).clamp(spec.qmin, spec.qmax) * scale

    def derivatives(weight: Callable[[], torch.Tensor]) -> list[torch.Tensor]:
        (once,) = torch.autograd.grad(weight().pow(3).sum(), rounding.alpha)
        (first,) = torch.autograd.grad(weight().pow(3).sum(), rounding.alpha, create_graph=True)
        return [weight(), once, first, *torch.autograd.grad(first.pow(2).sum(), rounding.alpha)]

    for ours, exact in zip(derivatives(rounding.soft_weight), derivatives(formula), strict=True):
        torch.testing.assert_close(ours, exact)
    for beta in (20.0, 2.0):
        penalty = (1 - (2 * rounding.h() - 1).abs().pow(beta)).sum()
        torch.testing.assert_close(rounding.regularizer(beta), penalty)
        pairs = [torch.autograd.grad(p, rounding.alpha)[0] for p in (rounding.regularizer(beta), penalty)]
        torch.testing.assert_close(*pairs)
