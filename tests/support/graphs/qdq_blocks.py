"""Blocks of diffusion models with Q/DQ: normalization, gated feed-forward, attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx

from gacq_deploy.lint.rules import Outcome
from tests.support.graphs.graph_sketch import Sketch

CHANNELS, LENGTH, HEADS = 32, 16, 2
_RNG = np.random.default_rng(2)
KERNEL = _RNG.integers(-127, 128, (CHANNELS, CHANNELS, 3, 3)).astype(np.int8)
SCALES = np.full(CHANNELS, 0.002, np.float32)


def group_norm(form: str, *, inside: bool = False) -> onnx.ModelProto:
    """GroupNorm, SiLU, Q/DQ, convolution; the norm as one operator or as exporters of old wrote it.

    ``inside``: one more pair between the norm and SiLU.
    """
    s = Sketch(opset=21 if form == "operator" else 20, inputs={"x": [1, CHANNELS, 8, 8]})
    groups, ones, zeros = 4, np.ones(CHANNELS), np.zeros(CHANNELS)
    if form == "operator":
        gain, bias = s.store("gain", ones), s.store("bias", zeros)
        s.node("GroupNormalization", ["x", gain, bias], "normed", num_groups=groups)
    else:
        s.node("Reshape", ["x", s.store("grouped", [0, groups, -1], np.int64)], "flat")
        gain, bias = s.store("gain", np.ones(groups)), s.store("bias", np.zeros(groups))
        s.node("InstanceNormalization", ["flat", gain, bias], "flat_normed")
        s.node("Reshape", ["flat_normed", s.store("shape", [1, CHANNELS, 8, 8], np.int64)], "unscaled")
        s.node("Mul", ["unscaled", s.store("w", ones.reshape(-1, 1, 1))], "scaled")
        s.node("Add", ["scaled", s.store("b", zeros.reshape(-1, 1, 1))], "normed")
    data = s.pair("normed", "inner") if inside else "normed"
    s.node("Sigmoid", [data], "sigmoid")
    s.node("Mul", [data, "sigmoid"], "silu")
    s.conv(s.pair("silu", "a"), weight=s.weight("weight", KERNEL, SCALES))
    return s.model()


def layer_norm() -> onnx.ModelProto:
    """LayerNorm, Q/DQ, linear layer."""
    s = Sketch(inputs={"x": [1, LENGTH, CHANNELS]})
    gain, bias = s.store("gain", np.ones(CHANNELS)), s.store("bias", np.zeros(CHANNELS))
    s.node("LayerNormalization", ["x", gain, bias], "normed", axis=-1)
    linear(s, s.pair("normed", "a"), "y")
    return s.model()


def gated_feed_forward() -> onnx.ModelProto:
    """GEGLU: linear layer, split, gelu, product, linear layer."""
    s = Sketch(inputs={"x": [1, LENGTH, CHANNELS]})
    linear(s, s.pair("x", "a"), "wide", out=2 * CHANNELS)
    s.nodes.append(
        onnx.helper.make_node("Split", ["wide"], ["value", "gate"], "split", axis=-1, num_outputs=2)
    )
    s.node("Gelu", ["gate"], "active")
    s.node("Mul", ["value", "active"], "gated")
    linear(s, s.pair("gated", "b"), "y")
    return s.model()


def attention(*, quantized: str = "") -> onnx.ModelProto:
    """Self-attention with INT8 projections; ``quantized``: which products have Q/DQ too (`qk`, `pv`, both)."""
    s = Sketch(inputs={"x": [1, LENGTH, CHANNELS]})
    size = CHANNELS // HEADS
    heads = s.store("heads", [1, LENGTH, HEADS, size], np.int64)
    data = s.pair("x", "a")
    for name in "qkv":
        s.node("Reshape", [linear(s, data, name), heads], f"{name}.heads")
        perm = [0, 2, 3, 1] if name == "k" else [0, 2, 1, 3]
        s.node("Transpose", [f"{name}.heads"], f"{name}.t", perm=perm)
    operands = {n: s.pair(f"{n}.t", f"{n}.pair") if n in quantized else f"{n}.t" for n in "qkv"}
    s.node("MatMul", [operands["q"], operands["k"]], "scores", "product-qk")
    s.node("Softmax", ["scores"], "p", axis=-1)
    p = s.pair("p", "p.pair", 1 / 127) if "p" in quantized else "p"
    s.node("MatMul", [p, operands["v"]], "mixed", "product-pv")
    s.node("Transpose", ["mixed"], "mixed.t", perm=[0, 2, 1, 3])
    s.node("Reshape", ["mixed.t", s.store("joined", [1, LENGTH, CHANNELS], np.int64)], "mixed.r")
    linear(s, s.pair("mixed.r", "o"), "y")
    return s.model()


def attention_operator(head_size: int, *, mask: bool = False) -> onnx.ModelProto:
    """The fused Attention of opset 23 behind INT8 projections; in float and with a mask no fused kernel exists."""
    s = Sketch(opset=23, inputs={"x": [1, LENGTH, CHANNELS]})
    data = s.pair("x", "a")
    width = HEADS * head_size
    operands = [linear(s, data, name, out=width) for name in "qkv"]
    operands += [s.store("mask", np.zeros((LENGTH, LENGTH)))] if mask else []
    s.node("Attention", operands, "mixed", "attention", q_num_heads=HEADS, kv_num_heads=HEADS)
    linear(s, s.pair("mixed", "o"), "y", into=width)
    return s.model()


def linear(s: Sketch, data: str, name: str, *, out: int = CHANNELS, into: int = CHANNELS) -> str:
    """A linear layer in the exporter's form."""
    codes = np.random.default_rng(len(name)).integers(-127, 128, (into, out))
    weight = s.weight(f"{name}.w", codes, np.full(out, 0.002), axis=1)
    return s.node("MatMul", [data, weight], name, f"{name}/MatMul")


PROJECTIONS: dict[str, Outcome] = {f"{name}/MatMul": "int8" for name in "qkvy"}
QUANTIZED_PRODUCTS: dict[str, dict[str, Outcome]] = {
    "qk": {"qk": "int8"},
    "pv": {"pv": "int8"},
    "qkpv": {"qk": "int8", "pv": "int8"},
    "q": {"qk": "float"},
    "k": {"qk": "float"},
    "p": {"pv": "float"},
    "v": {"pv": "float"},
    "qkv": {"qk": "int8", "pv": "float"},
}
BLOCKS: Mapping[str, tuple[Callable[[], onnx.ModelProto], Outcome | Mapping[str, Outcome]]] = {
    "group-norm-operator": (lambda: group_norm("operator"), "int8"),
    "group-norm-instance-form": (lambda: group_norm("instance"), "int8"),
    "pair-between-norm-and-silu": (lambda: group_norm("operator", inside=True), "int8"),
    "layer-norm": (layer_norm, "int8"),
    "geglu": (gated_feed_forward, "int8"),
    "attention-float-products": (attention, PROJECTIONS),
    **{
        f"attention-quantized-{which}": (
            lambda w=which: attention(quantized=w),
            {**PROJECTIONS, **{f"product-{pair}": outcome for pair, outcome in products.items()}},
        )
        for which, products in QUANTIZED_PRODUCTS.items()
    },
    **{f"attention-operator-{n}": (lambda n=n: attention_operator(n), PROJECTIONS) for n in (8, 40, 64, 80)},
    "attention-operator-with-mask": (lambda: attention_operator(16, mask=True), PROJECTIONS),
}
