"""Graphs with one Q/DQ pattern each: numbers, types, axes, and where the pairs stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto

from tests.support.graphs.graph_sketch import DQ, Q, Sketch

CHANNELS = 16
_RNG = np.random.default_rng(0)
CODES = _RNG.integers(-127, 128, (CHANNELS, CHANNELS, 3, 3)).astype(np.int8)
MATRIX = CODES[:, :, 0, 0]
BLOCKED = np.random.default_rng(3).integers(-127, 128, (128, 64)).astype(np.int8)
SCALES = np.linspace(0.005, 0.02, CHANNELS, dtype=np.float32)
IMAGE = {"x": [1, CHANNELS, 16, 16]}
TOKENS = {"x": [1, 16, CHANNELS]}


def conv(data: str = "x", *, opset: int = 20, **pair: Any) -> onnx.ModelProto:
    """A convolution whose input pair is made with ``pair``."""
    s = Sketch(opset=opset, inputs=IMAGE)
    s.conv(s.pair(data, "a", **pair), weight=s.weight("w", CODES, SCALES))
    return s.model()


def conv_weight(codes: Any = CODES, scale: Any = SCALES, axis: int = 0) -> onnx.ModelProto:
    """A convolution with this weight."""
    s = Sketch(inputs=IMAGE)
    s.conv(s.pair("x", "a"), weight=s.weight("w", codes, scale, axis))
    return s.model()


def matrix(op: str = "MatMul", axis: int = 1, **attributes: Any) -> onnx.ModelProto:
    """A matrix product; Gemm reads [16, 16]."""
    s = Sketch(inputs=TOKENS if op == "MatMul" else {"x": [16, CHANNELS]})
    s.node(op, [s.pair("x", "a"), s.weight("w", MATRIX, SCALES, axis)], "y", "layer", **attributes)
    return s.model()


def matrix_transposed(axis: int = 0) -> onnx.ModelProto:
    """A linear layer with the module's own weight, transposed in the graph."""
    s = Sketch(inputs=TOKENS)
    s.node("Transpose", [s.weight("w", MATRIX, SCALES, axis)], "t", perm=[1, 0])
    s.node("MatMul", [s.pair("x", "a"), "t"], "y", "layer")
    return s.model()


def convolution(shape: Sequence[int], weight: Sequence[int], **attributes: Any) -> onnx.ModelProto:
    """A convolution of any rank and stride."""
    s = Sketch(inputs={"x": shape})
    codes = np.random.default_rng(1).integers(-127, 128, weight)
    scales = np.full(weight[0], 0.01)
    s.node("Conv", [s.pair("x", "a"), s.weight("w", codes, scales)], "y", "layer", **attributes)
    return s.model()


def transposed_convolution(axis: int) -> onnx.ModelProto:
    """An up-sampling convolution, quantized along one of its channel axes."""
    s = Sketch(inputs=IMAGE)
    weight = s.weight("w", CODES[:, :, :2, :2], SCALES, axis)
    s.node("ConvTranspose", [s.pair("x", "a"), weight], "y", "layer", strides=[2, 2])
    return s.model()


def zero_point_missing(output_dtype: int = 0) -> onnx.ModelProto:
    """A pair without zero points: uint8 in ONNX, int8 in TensorRT."""
    s = Sketch(opset=21 if output_dtype else 20, inputs=IMAGE)
    s.store("scale", 0.1)
    written = {"output_dtype": output_dtype} if output_dtype else {}
    s.node(Q, ["x", "scale"], "codes", "a/Q", **written)
    s.node(DQ, ["codes", "scale"], "values", "a/DQ")
    s.conv("values", weight=s.weight("w", CODES, SCALES))
    return s.model()


def scale_from(source: str) -> onnx.ModelProto:
    """A pair whose scale is a graph input, computed from the data, or folded from a stored table."""
    s = Sketch(inputs={**IMAGE, **({"scale": []} if source == "input" else {})})
    s.store("zero", 0, np.int8)
    if source == "data":
        s.node("ReduceMax", ["x"], "scale", keepdims=0)
    elif source == "table":
        s.store("table", [0.1, 0.2])
        s.node("Gather", ["table", s.store("which", 1, np.int64)], "scale")
    s.node(Q, ["x", "scale", "zero"], "codes", "a/Q")
    s.conv(s.dequantize("codes", "scale", "zero", "a"), weight=s.weight("w", CODES, SCALES))
    return s.model()


def weight_scale_at_run_time() -> onnx.ModelProto:
    """A weight whose scale is a graph input."""
    s = Sketch(inputs={**IMAGE, "scale": [CHANNELS]})
    s.store("codes", CODES, np.int8)
    s.store("zero", np.zeros(CHANNELS), np.int8)
    s.conv(s.pair("x", "a"), weight=s.dequantize("codes", "scale", "zero", "w", axis=0))
    return s.model()


def float_weight(op: str = "Conv") -> onnx.ModelProto:
    """A float weight that the engine rounds itself."""
    s = Sketch(inputs=IMAGE if op == "Conv" else TOKENS)
    values = (CODES if op == "Conv" else MATRIX).astype(np.float32) * np.float32(0.01)
    weight = s.pair(s.store("w", values), "q", scale=SCALES, axis=0 if op == "Conv" else 1)
    pads = {"pads": [1, 1, 1, 1]} if op == "Conv" else {}
    s.node(op, [s.pair("x", "a"), weight], "y", "layer", **pads)
    return s.model()


def activation_only(op: str) -> onnx.ModelProto:
    """A layer with a quantized input and a float weight."""
    s = Sketch(inputs=IMAGE if op == "Conv" else TOKENS)
    weight = s.store("w", CODES if op == "Conv" else MATRIX)
    s.node(op, [s.pair("x", "a"), weight], "y", "layer")
    return s.model()


def weight_only(op: str) -> onnx.ModelProto:
    """A layer with a float input and a quantized weight."""
    s = Sketch(inputs=IMAGE if op == "Conv" else TOKENS)
    weight = s.weight("w", CODES if op == "Conv" else MATRIX, SCALES, 0 if op == "Conv" else 1)
    s.node(op, ["x", weight], "y", "layer")
    return s.model()


def integer_bias() -> onnx.ModelProto:
    """A convolution as ONNX Runtime's quantizer writes it."""
    s = Sketch(inputs=IMAGE)
    bias = s.weight("bias", np.arange(CHANNELS), SCALES * np.float32(0.1), dtype=np.int32)
    s.conv(s.pair("x", "a"), "y", bias, weight=s.weight("w", CODES, SCALES))
    return s.model()


def float_bias() -> onnx.ModelProto:
    """The exporter's own form."""
    s = Sketch(inputs=IMAGE)
    s.conv(s.pair("x", "a"), "y", s.store("bias", SCALES), weight=s.weight("w", CODES, SCALES))
    return s.model()


def integer_operator(op: str) -> onnx.ModelProto:
    """An operator on integers, on codes of the input."""
    s = Sketch(inputs=IMAGE if "Conv" in op else TOKENS)
    scale, zero = s.store("scale", 0.1), s.store("zero", 0, np.int8)
    weight = s.store("w", CODES if "Conv" in op else MATRIX, np.int8)
    if op == "DynamicQuantizeLinear":
        s.nodes.append(onnx.helper.make_node(op, ["x"], ["codes", "s", "z"], "layer"))
        s.node(DQ, ["codes", "s", "z"], "y", "a/DQ")
        return s.model()
    s.node(Q, ["x", scale, zero], "codes", "a/Q")
    if op.startswith("QLinear"):
        s.node(op, ["codes", scale, zero, weight, scale, zero, scale, zero], "sums", "layer")
        s.node(DQ, ["sums", scale, zero], "y", "y/DQ")
    else:
        s.node(op, ["codes", weight], "sums", "layer")
        s.node("Cast", ["sums"], "y", to=TensorProto.FLOAT)
    return s.model()


def mixed_floats(half: str) -> onnx.ModelProto:
    """A convolution with one operand dequantized to half, the other to float."""
    s = Sketch(inputs=IMAGE)
    kind, other = (np.float16, np.float32) if half == "activation" else (np.float32, np.float16)
    if half == "activation":
        s.node("Cast", ["x"], "data", to=TensorProto.FLOAT16)
    s.conv(
        s.pair("data" if half == "activation" else "x", "a", scale=kind(0.1)),
        weight=s.weight("w", CODES, SCALES.astype(other)),
    )
    return s.model()


def half_scales() -> onnx.ModelProto:
    """A half graph with half scales."""
    s = Sketch(inputs=IMAGE)
    s.node("Cast", ["x"], "half", to=TensorProto.FLOAT16)
    data = s.pair("half", "a", scale=np.float16(0.1))
    s.conv(data, "h", weight=s.weight("w", CODES, SCALES.astype(np.float16)))
    s.node("Cast", ["h"], "y", "out", to=TensorProto.FLOAT)
    return s.model()


def half_casts(opset: int = 20) -> onnx.ModelProto:
    """A half graph, Casts around the Q/DQ of activation and weight."""
    s = Sketch(opset=opset, inputs=IMAGE)
    s.node("Cast", ["x"], "half", to=TensorProto.FLOAT16)
    s.node("Cast", ["half"], "full", to=TensorProto.FLOAT)
    s.node("Cast", [s.pair("full", "a")], "data", to=TensorProto.FLOAT16)
    s.node("Cast", [s.weight("w", CODES, SCALES)], "weight", to=TensorProto.FLOAT16)
    s.conv("data", "h", weight="weight")
    s.node("Cast", ["h"], "y", "out", to=TensorProto.FLOAT)
    return s.model()


def half_output_dtype() -> onnx.ModelProto:
    """A half graph at opset 23: float scales, dequantizers that write half."""
    s = Sketch(opset=23, inputs=IMAGE)
    s.node("Cast", ["x"], "half", to=TensorProto.FLOAT16)
    s.store("s", 0.1), s.store("z", 0, np.int8)
    s.store("w.codes", CODES, np.int8), s.store("w.s", SCALES), s.store("w.z", np.zeros(CHANNELS), np.int8)
    s.node(Q, ["half", "s", "z"], "codes", "a/Q")
    data = s.node(DQ, ["codes", "s", "z"], "data", "a/DQ", output_dtype=TensorProto.FLOAT16)
    written = {"axis": 0, "output_dtype": TensorProto.FLOAT16}
    s.conv(data, "h", weight=s.node(DQ, ["w.codes", "w.s", "w.z"], "weight", "w/DQ", **written))
    s.node("Cast", ["h"], "y", "out", to=TensorProto.FLOAT)
    return s.model()


def concat(*, scales: tuple[float, float] | None, behind: bool, axis: int = 1) -> onnx.ModelProto:
    """A skip connection: pairs on the branches (``scales``), behind the concatenation, or both."""
    s = Sketch(inputs=IMAGE)
    s.node("Sigmoid", ["x"], "other")
    branches = [s.pair("x", "a", scales[0]), s.pair("other", "b", scales[1])] if scales else ["x", "other"]
    s.node("Concat", branches, "joined", axis=axis)
    data = s.pair("joined", "c") if behind else "joined"
    s.conv(data, weight=s.weight("w", np.concatenate([CODES, CODES], axis=1), SCALES))
    return s.model()


def split_convolution() -> onnx.ModelProto:
    """A convolution over a concatenation, taken apart so that each half has its scale."""
    s = Sketch(inputs=IMAGE)
    s.node("Sigmoid", ["x"], "other")
    one = s.conv(s.pair("x", "a", 0.1), "one", weight=s.weight("w1", CODES, SCALES))
    two = s.conv(s.pair("other", "b", 0.01), "two", weight=s.weight("w2", CODES, SCALES))
    s.node("Add", [one, two], "y")
    return s.model()


def residual(skip: str) -> onnx.ModelProto:
    """A residual block; the skip is float, has its own pair, or is taken from the convolution's pair."""
    s = Sketch(inputs=IMAGE)
    s.node("Sigmoid", ["x"], "data")
    values = s.pair("data", "a")
    branch = {"float": lambda: "data", "pair": lambda: s.pair("data", "skip", 0.05), "own": lambda: values}
    out = s.conv(values, "h", weight=s.weight("w", CODES, SCALES))
    s.node("Add", [out, branch[skip]()], "y")
    return s.model()


def behind(*operators: tuple[str, Mapping[str, Any]], before: bool = False) -> onnx.ModelProto:
    """A convolution behind operators that move data, with the pair right before it or before them."""
    s = Sketch(inputs=IMAGE)
    data = s.pair("x", "a") if before else "x"
    for i, (op, attributes) in enumerate(operators):
        known = dict(attributes)
        stored = enumerate(known.pop("inputs", ()))
        extra = [s.store(f"extra{i}.{k}", v, t) if v is not None else "" for k, (v, t) in stored]
        data = s.node(op, [data, *extra], f"moved{i}", **known)
    s.conv(data if before else s.pair(data, "a"), weight=s.weight("w", CODES, SCALES))
    return s.model()


def output_pair() -> onnx.ModelProto:
    """A convolution whose output has a pair of its own."""
    s = Sketch(inputs=IMAGE)
    out = s.conv(s.pair("x", "a"), "h", weight=s.weight("w", CODES, SCALES))
    s.node("Sigmoid", [s.pair(out, "b")], "y")
    return s.model()


def two_pairs() -> onnx.ModelProto:
    """Two pairs in a row."""
    s = Sketch(inputs=IMAGE)
    s.conv(s.pair(s.pair("x", "a"), "b", 0.2), weight=s.weight("w", CODES, SCALES))
    return s.model()


def run_time_factor(op: str = "Conv", *, place: str = "before", rows: bool = False) -> onnx.ModelProto:
    """Scales that follow the timestep: multiply by r before the pair and by 1/r behind the layer."""
    images = op == "Conv"
    batch = 2 if rows else 1
    s = Sketch(
        inputs={"x": [batch, *(IMAGE if images else TOKENS)["x"][1:]], "step": [batch] if rows else []}
    )
    # the index comes as a float here: the sketch's inputs are all float
    s.node("Cast", ["step"], "index", to=TensorProto.INT64)
    s.node("Gather", [s.store("table", [0.9, 1.0, 1.1]), "index"], "picked")
    shape = [-1, 1, 1, 1] if images else [-1, 1, 1]
    s.node("Reshape", ["picked", s.store("shape", shape, np.int64)], "r") if rows else None
    r = "r" if rows else "picked"
    weight = s.weight("w", CODES if images else MATRIX, SCALES, 0 if images else 1)
    if place == "before":
        data = s.pair(s.node("Mul", ["x", r], "scaled"), "a")
    else:
        data = s.node("Mul", [s.pair("x", "a"), r], "scaled")
    pads = {"pads": [1, 1, 1, 1]} if images else {}
    s.node(op, [data, weight], "h", "layer", **pads)
    s.node("Div", ["h", r], "unscaled")
    s.node("Add", ["unscaled", s.store("bias", SCALES.reshape(-1, 1, 1) if images else SCALES)], "y")
    return s.model()


def shared_pair(*, scales: Sequence[float] = (0.1,)) -> onnx.ModelProto:
    """Query, key and value projections of one tensor, with one pair or one each."""
    s = Sketch(inputs=TOKENS)
    pairs = [s.pair("x", f"a{i}", scale) for i, scale in enumerate(scales)]
    for i, name in enumerate("qkv"):
        weight = s.weight(f"w{name}", np.roll(MATRIX, i, axis=0), SCALES, 1)
        s.node("MatMul", [pairs[i % len(pairs)], weight], name, f"{name}/MatMul")
    s.node("Sum", ["q", "k", "v"], "y")
    return s.model()


def moved_codes() -> onnx.ModelProto:
    """Codes that are pooled before they are dequantized, and dequantized twice."""
    s = Sketch(inputs=IMAGE)
    s.store("scale", 0.1), s.store("zero", 0, np.int8)
    s.node(Q, ["x", "scale", "zero"], "codes", "a/Q")
    s.node("MaxPool", ["codes"], "pooled", kernel_shape=[2, 2])
    weight = s.weight("w", CODES, SCALES)
    one = s.conv(s.dequantize("pooled", "scale", "zero", "a"), "one", weight=weight)
    two = s.conv(
        s.dequantize("pooled", "scale", "zero", "b"), "two", weight=s.weight("v", CODES[::-1], SCALES)
    )
    s.node("Add", [one, two], "y")
    return s.model()


def moved_weight(op: str, axis: int = 0, **attributes: Any) -> onnx.ModelProto:
    """A weight that moves between its dequantizer and the convolution."""
    s = Sketch(inputs=IMAGE)
    weight = s.node(op, [s.weight("w", CODES, SCALES, axis)], "moved", **attributes)
    s.conv(s.pair("x", "a"), weight=weight)
    return s.model()


def joined(kind: str) -> onnx.ModelProto:
    """Different scales that meet in a concatenation of a concatenation, behind a pooling, or before one."""
    s = Sketch(inputs=IMAGE)
    s.node("Sigmoid", ["x"], "other")
    one, two = s.pair("x", "a", 0.1), s.pair("other", "b", 0.2)
    if kind == "nested":
        s.node("Concat", [two, s.pair("x", "c", 0.2)], "inner", axis=1)
        data = s.node("Concat", [one, "inner"], "joined", axis=1)
    else:
        pool = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
        two = s.node("MaxPool", [two], "pooled", **pool) if kind == "pooled" else two
        data = s.node("Concat", [one, two], "joined", axis=1)
        data = s.node("MaxPool", [data], "last", **pool) if kind == "then-pooled" else data
    codes = np.concatenate([CODES] * (3 if kind == "nested" else 2), axis=1)
    s.conv(data, weight=s.weight("w", codes, SCALES))
    return s.model()


def joined_tokens(axis: int) -> onnx.ModelProto:
    """Tokens of two kinds with their own scales; behind ``axis`` 1 each row of the product has one scale."""
    s = Sketch(inputs=TOKENS)
    s.node("Sigmoid", ["x"], "other")
    s.node("Concat", [s.pair("x", "a", 0.1), s.pair("other", "b", 0.2)], "joined", axis=axis)
    codes = np.concatenate([MATRIX, MATRIX]) if axis == 2 else MATRIX
    s.node("MatMul", ["joined", s.weight("w", codes, SCALES, 1)], "y", "layer")
    return s.model()


def scale_vector(op: str) -> onnx.ModelProto:
    """A pair whose one scale is stored as a vector."""
    s = Sketch(inputs=IMAGE if op == "Conv" else TOKENS)
    s.store("scale", [0.1]), s.store("zero", [0], np.int8)
    s.node(Q, ["x", "scale", "zero"], "codes", "a/Q")
    data = s.dequantize("codes", "scale", "zero", "a")
    weight = s.weight("w", CODES if op == "Conv" else MATRIX, SCALES, 0 if op == "Conv" else 1)
    s.node(op, [data, weight], "y", "layer")
    return s.model()


def stored_weight(
    codes: Any, dtype: Any, *, zero: Any = None, op: str = "Conv", **attributes: Any
) -> onnx.ModelProto:
    """A layer with a weight of any code type, zero point and blocks."""
    s = Sketch(opset=21, inputs=IMAGE if op == "Conv" else {"x": [1, 16, len(codes)]})
    block = attributes.get("block_size", 0)
    scales = np.full((len(codes) // block, codes.shape[1]), 0.01) if block else SCALES
    inputs = [s.store("w.codes", codes, dtype), s.store("w.scale", scales)]
    inputs += [] if zero is None else [s.store("w.zero", zero, dtype)]
    weight = s.node(DQ, inputs, "w", "w/DQ", **attributes)
    s.node(op, [s.pair("x", "a"), weight], "y", "layer")
    return s.model()


def int4_blocks(
    block: int,
    *,
    size: int = 128,
    op: str = "MatMul",
    opset: int = 21,
    half: bool = False,
    cast: bool = False,
) -> onnx.ModelProto:
    """A float product with a weight in INT4, one scale a block; ``cast``: made half behind its dequantizer."""
    s = Sketch(opset=opset, inputs={"x": [16, size]})
    rng = np.random.default_rng(0)
    count = -(-size // block)
    across, axis = (CHANNELS, size)[:: 1 if op == "Gemm" else -1], 1 if op == "Gemm" else 0
    scales = rng.uniform(0.01, 0.02, (CHANNELS, count) if op == "Gemm" else (count, CHANNELS))
    s.store("w.codes", rng.integers(-7, 8, across), ml_dtypes.int4)
    s.store("w.scale", scales, np.float16 if half else np.float32)
    s.store("w.zero", np.zeros(scales.shape), ml_dtypes.int4)
    weight = s.node(DQ, ["w.codes", "w.scale", "w.zero"], "w", "w/DQ", axis=axis, block_size=block)
    data = s.node("Cast", ["x"], "x.half", to=TensorProto.FLOAT16) if half or cast else "x"
    weight = s.node("Cast", [weight], "w.half", "w/Cast", to=TensorProto.FLOAT16) if cast else weight
    s.node(op, [data, weight], "y", "layer", **({"transB": 1} if op == "Gemm" else {}))
    return s.model()


def float8() -> onnx.ModelProto:
    """A convolution in FP8."""
    s = Sketch(inputs=IMAGE)
    kind = ml_dtypes.float8_e4m3fn
    s.store("w.codes", CODES.astype(np.float32) / 127, kind), s.store("w.scale", 0.1)
    weight = s.node(DQ, ["w.codes", "w.scale"], "w", "w/DQ")
    s.conv(s.pair("x", "a", dtype=kind), weight=weight)
    return s.model()


def left_weight() -> onnx.ModelProto:
    """A product with the weight on its left."""
    s = Sketch(inputs=TOKENS)
    s.node("MatMul", [s.weight("w", MATRIX, SCALES, 0), s.pair("x", "a")], "y", "layer")
    return s.model()


def foreign(op: str) -> onnx.ModelProto:
    """An operator of another domain behind the convolution."""
    s = Sketch(inputs=IMAGE, domains=["com.microsoft"])
    s.conv(s.pair("x", "a"), "h", weight=s.weight("w", CODES, SCALES))
    s.node(op, ["h"], "y", "special", domain="com.microsoft")
    return s.model()


def foreign_pair() -> onnx.ModelProto:
    """Q/DQ of ONNX Runtime's own domain."""
    return with_domain(conv(domain="com.microsoft"))


def with_domain(model: onnx.ModelProto) -> onnx.ModelProto:
    """Import ONNX Runtime's operators."""
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    return model


def nameless() -> onnx.ModelProto:
    """Nodes without names; the compiler then makes some."""
    model = conv()
    for node in model.graph.node:
        node.name = ""
    return model
