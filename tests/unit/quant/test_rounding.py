"""AdaRound starts at the float weight, ends on the grid, one step from floor at most."""

from __future__ import annotations

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
