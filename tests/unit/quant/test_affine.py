"""The fake quantizer computes what the engines compute."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import onnxruntime
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper
from torch.autograd import forward_ad

from gacq_deploy.quant.affine import channel_shape, fake_quantize

floats = st.floats(-1e3, 1e3, width=32)
tensors = hnp.arrays(np.float32, hnp.array_shapes(min_dims=1, max_dims=3, max_side=6), elements=floats)
scales = st.floats(2**-10, 50.0, width=32)


def quantize_session() -> onnxruntime.InferenceSession:
    """Q -> DQ with a scale that is an input, optimization off."""
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        ],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [helper.make_tensor("z", TensorProto.INT8, [], [0])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


SESSION = quantize_session()


@settings(max_examples=150, deadline=None)
@given(x=tensors, scale=scales)
def test_equal_to_onnx_runtime_bit_for_bit(x: np.ndarray, scale: float) -> None:
    ours = fake_quantize(torch.from_numpy(x), torch.tensor(scale), -128, 127).numpy()
    theirs = SESSION.run(None, {"x": x, "s": np.array(scale, np.float32)})[0]
    np.testing.assert_array_equal(ours, theirs)


def test_ties_round_to_even_and_the_range_is_clamped() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 1e9, -1e9])
    assert fake_quantize(x, torch.tensor(1.0), -128, 127).tolist() == [0, 2, 2, 0, -2, 127, -128]


@settings(max_examples=60, deadline=None)
@given(x=tensors, scale=scales)
def test_idempotent_and_at_most_half_a_step_off_in_range(x: np.ndarray, scale: float) -> None:
    s = torch.tensor(scale)
    once = fake_quantize(torch.from_numpy(x), s, -128, 127)
    assert torch.equal(fake_quantize(once, s, -128, 127), once)
    inside = torch.from_numpy(x).abs() <= 127 * s
    error = (once - torch.from_numpy(x)).abs()[inside]
    assert bool((error <= s * 0.5 * (1 + 1e-5) + 1e-6 * torch.from_numpy(x).abs()[inside]).all())


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_per_channel_equals_per_tensor_channel_by_channel(data: st.DataObject) -> None:
    w = data.draw(hnp.arrays(np.float32, (4, 3, 2), elements=floats))
    s = torch.tensor(data.draw(st.lists(scales, min_size=4, max_size=4)))
    whole = fake_quantize(torch.from_numpy(w), channel_shape(s, 3, 0), -7, 7)
    for channel in range(4):
        alone = fake_quantize(torch.from_numpy(w[channel]), s[channel], -7, 7)
        assert torch.equal(whole[channel], alone)


def test_gradients_are_straight_through_inside_and_lsq_for_the_scale() -> None:
    x = torch.tensor([0.3, -2.6, 500.0], requires_grad=True)
    s = torch.tensor(1.0, requires_grad=True)
    fake_quantize(x, s, -128, 127).sum().backward()
    assert x.grad is not None
    assert s.grad is not None
    assert x.grad.tolist() == [1.0, 1.0, 0.0]
    # LSQ eq. 3: round(x/s) - x/s inside the range, qmax above it
    expected = (0 - 0.3) + (-3 + 2.6) + 127
    assert abs(float(s.grad) - expected) < 1e-4


def test_the_gradient_path_computes_the_same_numbers() -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    s = torch.tensor(0.037)
    plain = fake_quantize(x, s, -128, 127)
    learning = fake_quantize(x, s.clone().requires_grad_(), -128, 127)
    # x/s + (round(x/s) - x/s) is round(x/s) up to one float32 rounding of a small difference
    assert torch.allclose(plain, learning.detach(), rtol=0, atol=1e-5)


def written_out(x: torch.Tensor, scale: torch.Tensor, qmin: int, qmax: int) -> torch.Tensor:
    """Fake quantization as autograd would see it: rounding passes its gradient on."""
    codes = x / scale
    codes = codes + (codes.round() - codes).detach()
    return codes.clamp(qmin, qmax) * scale


@settings(max_examples=40, deadline=None)
@given(x=tensors, scale=scales)
def test_its_derivatives_are_those_of_the_straight_through_estimator(x: np.ndarray, scale: float) -> None:
    def derivatives(quantize: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
        given = torch.from_numpy(x).double().requires_grad_()
        step = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
        once = torch.autograd.grad(quantize(given, step, -7, 7).pow(2).sum(), (given, step))
        first = torch.autograd.grad(
            quantize(given, step, -7, 7).pow(2).sum(), (given, step), create_graph=True
        )
        second = torch.autograd.grad(first[0].pow(2).sum() + first[1].pow(2), (given, step))
        with forward_ad.dual_level(), warnings.catch_warnings():
            # torch compiles its own forward-mode rules with what it has deprecated
            warnings.simplefilter("ignore", DeprecationWarning)
            duals = [forward_ad.make_dual(t, torch.ones_like(t)) for t in (given, step)]
            along = forward_ad.unpack_dual(quantize(*duals, -7, 7)).tangent
        return [*once, *first, *second, along]

    for ours, exact in zip(derivatives(fake_quantize), derivatives(written_out), strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-9, atol=1e-9)
