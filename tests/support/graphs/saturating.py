"""Graphs of one 8-bit layer, and what kernels that add two products in 16 bits make of it.

Run as a program it tells, case by case, what OpenVINO computes in this process.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from gacq_deploy.backends.saturation import overflowing_layers
from gacq_deploy.engines.open import open_engine
from tests.support.graphs.onnx_graphs import denoiser_graph, feeds

Codes = NDArray[np.int8]
SIZE = 4
"""Height and width of a convolution's input, and rows of a product's."""


def clamped_sums(activations: NDArray[np.uint8], weights: NDArray[np.int16]) -> NDArray[np.int64]:
    """Return ``activations @ weights.T`` where each sum of two neighbouring products is clamped to 16 bits.

    Args:
        activations: [rows, channels]
        weights: [outputs, channels]
    """
    products = activations.astype(np.int64)[:, None, :] * weights.astype(np.int64)[None]
    if products.shape[-1] % 2:
        products = np.pad(products, ((0, 0), (0, 0), (0, 1)))
    pairs = products.reshape(*products.shape[:-1], -1, 2).sum(-1)
    return np.clip(pairs, -(2**15), 2**15 - 1).sum(-1)


def cap_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process be judged as if OpenVINO had no VNNI here.

    oneDNN reads its variable once, at its first use: so it is used before, and other tests of this process keep its
    kernels.
    """
    with open_engine("openvino", denoiser_graph(quantized=True).SerializeToString(), threads=1) as engine:
        engine.run(feeds(1))
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")


@dataclass(frozen=True)
class Layer:
    """One layer in our Q/DQ form: signed activations, weights as they are stored."""

    op_type: str
    codes: Codes
    groups: int = 1

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the input with two rows."""
        match self.op_type:
            case "Conv":
                return (2, self.codes.shape[1] * self.groups, SIZE, SIZE)
            case "ConvTranspose":
                return (2, self.codes.shape[0], SIZE, SIZE)
            case "Gemm":
                return (2, self.codes.shape[1])
            case _:
                return (2, SIZE, self.codes.shape[0])

    def graph(self) -> onnx.ModelProto:
        """Return the graph; scales are powers of two, so that the float result tells the integer sums."""
        attributes = {
            "Conv": {"group": self.groups},
            "ConvTranspose": {"group": self.groups},
            "Gemm": {"transB": 1},
        }
        axis = {"Conv": 0, "ConvTranspose": 1, "Gemm": 0}.get(self.op_type, 1)
        constants = {
            "codes": self.codes,
            "weight_scale": np.full(self.codes.shape[axis], 0.25, np.float32),
            "weight_zero": np.zeros(self.codes.shape[axis], np.int8),
            "scale": np.float32(0.5),
            "zero": np.int8(0),
        }
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
            helper.make_node("DequantizeLinear", ["codes", "weight_scale", "weight_zero"], ["w"], axis=axis),
            helper.make_node(self.op_type, ["d", "w"], ["y"], "layer", **attributes.get(self.op_type, {})),
        ]
        graph = helper.make_graph(
            nodes,
            "layer",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *self.input_shape[1:]])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)

    def clamped(self, x: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """Return what clamping kernels answer to ``x``; None for convolutions, whose borders are padded.

        They take unsigned activations: 128 is added to every code, and its product taken off the sum.
        """
        if self.op_type not in ("Gemm", "MatMul"):
            return None
        weights = (self.codes if self.op_type == "Gemm" else self.codes.T).astype(np.int16)
        unsigned = np.rint(x.reshape(-1, x.shape[-1]) / 0.5) + 128
        sums = clamped_sums(unsigned.astype(np.uint8), weights) - 128 * weights.sum(1, dtype=np.int64)
        return (0.125 * sums).astype(np.float32).reshape(*x.shape[:-1], -1)

    def inputs(self, seed: int = 0) -> tuple[NDArray[np.float32], ...]:
        """Return the largest activation everywhere, and extremes at random."""
        rng = np.random.default_rng(seed)
        codes = (np.full(self.input_shape, 127), rng.choice([-128, 127], self.input_shape))
        return tuple((0.5 * c).astype(np.float32) for c in codes)

    def __str__(self) -> str:
        return f"{self.op_type} {'x'.join(map(str, self.codes.shape))}{f' groups {self.groups}' * (self.groups > 1)}"


def of_channels(layer: Layer, *patterns: Sequence[int]) -> Layer:
    """Return the layer with one pattern after another, output by output, repeated along the input channels."""
    shape = layer.codes.shape
    inputs, outputs = {"Conv": (1, 0), "Gemm": (1, 0)}.get(layer.op_type, (0, 1))
    rows = np.stack([np.resize(np.array([*p], np.int8), shape[inputs]) for p in patterns])
    table = rows[np.arange(shape[outputs]) % len(patterns)]  # [outputs, inputs]
    table = table if outputs == 0 else table.T
    spread = table.reshape(*table.shape, *[1] * (len(shape) - 2))
    return Layer(layer.op_type, np.broadcast_to(spread, shape).copy(), layer.groups)


def _empty(op_type: str, *shape: int, groups: int = 1) -> Layer:
    return Layer(op_type, np.zeros(shape, np.int8), groups)


CASES = (
    _empty("Conv", 32, 32, 3, 3),
    _empty("Conv", 32, 32, 1, 1),
    _empty("Conv", 16, 7, 3, 3),
    _empty("Conv", 16, 8, 3, 3, groups=2),
    _empty("Conv", 16, 3, 3, 3, groups=4),
    _empty("ConvTranspose", 32, 32, 3, 3),
    _empty("ConvTranspose", 16, 8, 3, 3, groups=2),
    _empty("Gemm", 32, 33),
    _empty("MatMul", 64, 32),
)
"""Every layer with input channels to fill in."""
SAFE = ((127, 1), (64, 64), (127, -127), (-127, -1), (127, 0))
UNSAFE = ((127, 127), (65, 64), (-127, -2), (127, 127, 0, 0))
"""Weights along the input channels, repeated."""


def is_wrong_somewhere(layer: Layer, pattern: Sequence[int]) -> bool:
    """Tell whether some kernel without VNNI is wrong on a pattern that most are exact on.

    For AVX2, of grouped convolutions with an odd number of channels, it adds the last channel at one position to the
    first at the next; for AVX-512, of transposed ones, it halves the weights first.
    """
    if layer.op_type == "ConvTranspose":
        return any(code % 2 for code in pattern)
    odd = layer.op_type == "Conv" and layer.groups > 1 and layer.codes.shape[1] % 2 == 1
    return odd and abs(2 * pattern[0]) > 128


def measure(layer: Layer) -> dict[str, Any]:
    """Tell output by output whether OpenVINO is exact, and of products whether it equals the clamped reference."""
    data = layer.graph().SerializeToString()
    exact, clamped = [], []
    with (
        open_engine("ort-cpu", data, threads=1, optimize=False) as plain,
        open_engine("openvino", data, threads=1, allow_inexact=True) as opened,
    ):
        for x in layer.inputs():
            found, reference = opened.run({"x": x})["y"], layer.clamped(x)
            equal = np.moveaxis(found == plain.run({"x": x})["y"], 1 if "Conv" in layer.op_type else -1, 0)
            exact.append(equal.reshape(len(equal), -1).all(1))
            clamped.append(reference is None or np.array_equal(found, reference))
    return {
        "judged safe": not overflowing_layers(data),
        "exact": np.all(exact, axis=0).tolist(),
        "clamped": all(clamped),
    }


if __name__ == "__main__":
    found = {
        f"{layer} {kind}": measure(of_channels(layer, *patterns))
        for layer in CASES
        for kind, patterns in (("safe", SAFE), ("unsafe", UNSAFE))
    }
    print(json.dumps(found))  # noqa: T201 (this is its answer)
