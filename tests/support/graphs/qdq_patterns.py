"""Q/DQ patterns and what TensorRT's parser and compiler were found to make of them.

``compiled`` states what was measured with TensorRT-RTX 1.7; the contract test holds both the compiler and our
lint to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto

from gacq_deploy.lint.rules import Outcome
from tests.support.graphs import qdq_blocks as blocks
from tests.support.graphs import qdq_graphs as graphs

Build = Callable[[], onnx.ModelProto]
JOINED = ("nested", "pooled", "then-pooled")
# an infinite or denormal scale compiles and computes nonsense: only the lint speaks up
BAD_SCALES: Mapping[float, Outcome] = {
    0.0: "refused", -0.1: "refused", float("nan"): "refused", float("inf"): "int8", 1e-40: "int8",
}  # fmt: skip


@dataclass(frozen=True)
class Pattern:
    """One row: a graph, and what became of its quantized layers: all of them, or each by node name.

    ``strict``: what the lint says of the layers instead, where it knows no better and is stricter.
    """

    name: str
    build: Build
    compiled: Outcome | Mapping[str, Outcome]
    strict: Outcome | None = None

    @property
    def build_outcome(self) -> Outcome:
        """What became of the whole build: ``int8`` where a plan came out."""
        return self.compiled if self.compiled in ("refused", "crash") else "int8"

    def expected(self, layers: Iterable[str]) -> dict[str, Outcome]:
        """Return the outcome of each of these layers."""
        return dict.fromkeys(layers, self.compiled) if isinstance(self.compiled, str) else dict(self.compiled)

    def predicted(self, layers: Iterable[str]) -> dict[str, Outcome]:
        """Return what the lint is to say of them."""
        return self.expected(layers) if self.strict is None else dict.fromkeys(layers, self.strict)


RESIZE = (
    "Resize",
    {"inputs": [(None, None), ([1, 1, 2, 2], np.float32)], "mode": "nearest",
     "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
)  # fmt: skip
_BORDER = [0, 0, 1, 1, 0, 0, 1, 1]
BETWEEN: Mapping[str, tuple[tuple[str, Mapping[str, Any]], Outcome]] = {
    "identity": (("Identity", {}), "int8"),
    "dropout": (("Dropout", {}), "int8"),
    "slice": (("Slice", {"inputs": [([0], np.int64), ([8], np.int64), ([2], np.int64)]}), "int8"),
    "gather": (("Gather", {"inputs": [([0, 1, 2], np.int64)], "axis": 2}), "int8"),
    "tile": (("Tile", {"inputs": [([1, 1, 2, 2], np.int64)]}), "int8"),
    "expand": (("Expand", {"inputs": [([2, graphs.CHANNELS, 16, 16], np.int64)]}), "int8"),
    "neg": (("Neg", {}), "int8"),
    "abs": (("Abs", {}), "int8"),
    "global-max-pool": (("GlobalMaxPool", {}), "int8"),
    "pad-with-zeros": (("Pad", {"inputs": [(_BORDER, np.int64)]}), "int8"),
    "pad-by-reflection": (("Pad", {"inputs": [(_BORDER, np.int64)], "mode": "reflect"}), "int8"),
    "pad-with-ones": (("Pad", {"inputs": [(_BORDER, np.int64), (1.0, np.float32)]}), "float"),
    "factor": (("Mul", {"inputs": [(0.5, np.float32)]}), "int8"),
    "divisor": (("Div", {"inputs": [(0.5, np.float32)]}), "int8"),
    "factor-per-channel": (("Mul", {"inputs": [(graphs.SCALES.reshape(-1, 1, 1), np.float32)]}), "float"),
    "summand": (("Add", {"inputs": [(0.5, np.float32)]}), "float"),
    "relu": (("Relu", {}), "float"),
    "sigmoid": (("Sigmoid", {}), "float"),
    "average-pool": (("AveragePool", {"kernel_shape": [2, 2]}), "float"),
}

PATTERNS: tuple[Pattern, ...] = (
    # zero points and code types
    *(
        Pattern(f"zero-point-3-{t.__name__}", lambda t=t: graphs.conv(zero=3, dtype=t), "refused")
        for t in (np.int8, np.uint8)
    ),
    Pattern("uint8-zero-point-0", lambda: graphs.conv(dtype=np.uint8), "int8"),
    Pattern("zero-point-missing", graphs.zero_point_missing, "int8"),
    Pattern("zero-point-missing-output-dtype", lambda: graphs.zero_point_missing(TensorProto.INT8), "int8"),
    Pattern("float8-codes", graphs.float8, "float"),
    Pattern("int16-codes", lambda: graphs.conv(dtype=np.int16, opset=21), "refused"),
    # scales
    *(Pattern(f"activation-scale-{v}", lambda v=v: graphs.conv(scale=v), o) for v, o in BAD_SCALES.items()),
    *(
        Pattern(f"weight-scale-{v}", lambda v=v: graphs.conv_weight(scale=[*graphs.SCALES[1:], v]), o)
        for v, o in BAD_SCALES.items()
    ),
    Pattern("scale-is-an-input", lambda: graphs.scale_from("input"), "crash"),
    Pattern("scale-computed-from-data", lambda: graphs.scale_from("data"), "crash"),
    Pattern("scale-folded-from-a-table", lambda: graphs.scale_from("table"), "int8"),
    Pattern("weight-scale-is-an-input", graphs.weight_scale_at_run_time, "refused"),
    Pattern("activation-scale-vector-Conv", lambda: graphs.scale_vector("Conv"), "float"),
    Pattern("activation-scale-vector-MatMul", lambda: graphs.scale_vector("MatMul"), "int8"),
    Pattern("activation-scale-per-channel", lambda: graphs.conv(scale=graphs.SCALES, axis=1), "float"),
    # weights
    Pattern("weight-codes-per-channel", graphs.conv_weight, "int8"),
    Pattern("float-weight-conv", graphs.float_weight, "int8"),
    Pattern("float-weight-matmul", lambda: graphs.float_weight("MatMul"), "int8"),
    Pattern("weight-scale-per-tensor", lambda: graphs.conv_weight(scale=np.float32(0.01)), "int8"),
    Pattern(
        "weight-code-128",
        lambda: graphs.conv_weight(np.where(graphs.CODES == 127, -128, graphs.CODES)),
        "int8",
    ),
    Pattern("gemm-transB-axis-0", lambda: graphs.matrix("Gemm", 0, transB=1), "int8"),
    Pattern("gemm-axis-1", lambda: graphs.matrix("Gemm", 1), "int8"),
    Pattern("matmul-axis-1", graphs.matrix, "int8"),
    Pattern("matmul-of-transposed-weight", graphs.matrix_transposed, "int8"),
    Pattern("wrong-axis-conv", lambda: graphs.conv_weight(axis=1), "float"),
    Pattern("wrong-axis-matmul", lambda: graphs.matrix(axis=0), "float"),
    Pattern("wrong-axis-gemm", lambda: graphs.matrix("Gemm", 0), "float"),
    Pattern("wrong-axis-gemm-transB", lambda: graphs.matrix("Gemm", 1, transB=1), "float"),
    Pattern("wrong-axis-transposed-weight", lambda: graphs.matrix_transposed(1), "float"),
    Pattern("weight-reshaped-to-itself", lambda: graphs.moved_weight("Identity"), "int8"),
    Pattern("weight-turned", lambda: graphs.moved_weight("Transpose", perm=[0, 1, 3, 2]), "int8"),
    Pattern(
        "weight-axes-swapped-axis-1", lambda: graphs.moved_weight("Transpose", 1, perm=[1, 0, 2, 3]), "int8"
    ),
    Pattern(
        "wrong-axis-after-transpose", lambda: graphs.moved_weight("Transpose", perm=[1, 0, 2, 3]), "float"
    ),
    Pattern("weight-on-the-left", graphs.left_weight, "int8"),
    Pattern(
        "weight-uint8", lambda: graphs.stored_weight(graphs.CODES.view(np.uint8), np.uint8, axis=0), "refused"
    ),
    Pattern(
        "zero-point-for-all-channels",
        lambda: graphs.stored_weight(graphs.CODES, np.int8, zero=0, axis=0),
        "refused",
    ),
    *(
        Pattern(
            f"weight-int4-{op}",
            lambda c=c, op=op, a=a: graphs.stored_weight(c, ml_dtypes.int4, op=op, axis=a),
            o,
        )
        for op, c, a, o in (
            ("Conv", graphs.CODES // 16, 0, "refused"),
            ("MatMul", graphs.MATRIX // 16, 1, "int8"),
        )
    ),
    *(
        Pattern(
            f"weight-blocks-of-{b}",
            lambda b=b: graphs.stored_weight(graphs.BLOCKED, np.int8, op="MatMul", axis=0, block_size=b),
            "refused" if b < len(graphs.BLOCKED) else "int8",
        )
        for b in (32, 64, 128)
    ),
    Pattern("channel-count", lambda: graphs.conv_weight(scale=np.full(graphs.CHANNELS - 1, 0.01)), "refused"),
    Pattern("conv-transpose-axis-0", lambda: graphs.transposed_convolution(0), "float"),
    Pattern("conv-transpose-axis-1", lambda: graphs.transposed_convolution(1), "float"),
    *(
        Pattern(f"activation-only-{op}", lambda op=op: graphs.activation_only(op), "float")
        for op in ("Conv", "MatMul")
    ),
    *(
        Pattern(f"weight-only-{op}", lambda op=op: graphs.weight_only(op), "float")
        for op in ("Conv", "MatMul")
    ),
    *(
        Pattern(f"int4-blocks-{op}{label}", lambda op=op, k=k: graphs.int4_blocks(op=op, **k), "float")
        for op in ("MatMul", "Gemm")
        for label, k in (
            ("", {"block": 32}),
            ("-half", {"block": 32, "half": True}),
            ("-cast", {"block": 32, "cast": True}),
            ("-one", {"block": 128}),
        )
    ),
    Pattern("int4-blocks-ragged", lambda: graphs.int4_blocks(64, size=160), "refused"),
    Pattern("int4-blocks-opset-20", lambda: graphs.int4_blocks(32, opset=20), "float"),
    Pattern("bias-int32", graphs.integer_bias, "refused"),
    Pattern("bias-float", graphs.float_bias, "int8"),
    *(
        Pattern(op, lambda op=op: graphs.integer_operator(op), "refused")
        for op in ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear")
    ),
    # float types
    Pattern("half-activation-float-weight", lambda: graphs.mixed_floats("activation"), "refused"),
    Pattern("float-activation-half-weight", lambda: graphs.mixed_floats("weight"), "refused"),
    Pattern("half-scales", graphs.half_scales, "int8"),
    *(Pattern(f"half-casts-opset-{o}", lambda o=o: graphs.half_casts(o), "int8") for o in (13, 20, 23)),
    Pattern("half-output-dtype-opset-23", graphs.half_output_dtype, "int8"),
    *(Pattern(f"opset-{o}", lambda o=o: graphs.conv(opset=o), "int8") for o in range(11, 27)),
    # placement
    Pattern("q-k-v-share-a-pair", graphs.shared_pair, "int8"),
    Pattern("q-k-v-three-scales", lambda: graphs.shared_pair(scales=(0.1, 0.2, 0.3)), "int8"),
    Pattern("concat-then-pair", lambda: graphs.concat(scales=None, behind=True), "int8"),
    Pattern("concat-different-scales", lambda: graphs.concat(scales=(0.1, 0.2), behind=False), "float"),
    Pattern("concat-same-scales", lambda: graphs.concat(scales=(0.1, 0.1), behind=False), "int8"),
    Pattern(
        "concat-different-scales-then-pair", lambda: graphs.concat(scales=(0.1, 0.2), behind=True), "int8"
    ),
    Pattern("split-convolution", graphs.split_convolution, "int8"),
    *(
        Pattern(f"residual-{kind}-skip", lambda k=kind: graphs.residual(k), "int8")
        for kind in ("float", "pair", "own")
    ),
    *(
        Pattern(
            f"{name}-{where}-pair", lambda m=moves, b=where == "behind": graphs.behind(*m, before=b), "int8"
        )
        for name, moves in {
            "max-pool": [("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2]})],
            "reshape": [("Reshape", {"inputs": [([1, graphs.CHANNELS, 8, 32], np.int64)]})],
            "transpose": [("Transpose", {"perm": [0, 1, 3, 2]})],
        }.items()
        for where in ("before", "behind")
    ),
    Pattern("nearest-resize-before-pair", lambda: graphs.behind(RESIZE), "int8"),
    Pattern("nearest-resize-behind-pair", lambda: graphs.behind(RESIZE, before=True), "float"),
    *(
        Pattern(f"{name}-behind-pair", lambda m=m: graphs.behind(m, before=True), o)
        for name, (m, o) in BETWEEN.items()
    ),
    Pattern("pair-on-the-output", graphs.output_pair, "int8"),
    Pattern("two-pairs-in-a-row", graphs.two_pairs, "int8"),
    *(
        Pattern(
            f"run-time-factor-{op}{'-per-row' if rows else ''}",
            lambda o=op, r=rows: graphs.run_time_factor(o, rows=r),
            "int8",
        )
        for op in ("Conv", "MatMul")
        for rows in (False, True)
    ),
    Pattern("run-time-factor-behind-the-pair", lambda: graphs.run_time_factor(place="behind"), "float"),
    Pattern(
        "two-casts-behind-pair",
        lambda: graphs.behind(
            ("Cast", {"to": TensorProto.FLOAT16}), ("Cast", {"to": TensorProto.FLOAT}), before=True
        ),
        "float",
    ),
    Pattern("codes-pooled-and-dequantized-twice", graphs.moved_codes, "int8"),
    *(
        Pattern(f"concat-{kind}-different-scales", lambda k=kind: graphs.joined(k), "float")
        for kind in JOINED
    ),
    Pattern("concat-of-features-different-scales", lambda: graphs.joined_tokens(2), "float"),
    Pattern("concat-of-tokens-different-scales", lambda: graphs.joined_tokens(1), "int8", strict="float"),
    Pattern("pairs-of-another-domain", graphs.foreign_pair, "int8"),
    Pattern("namesake-of-another-domain", lambda: graphs.foreign("Gelu"), "int8"),
    Pattern("operator-of-another-domain", lambda: graphs.foreign("QuickGelu"), "refused"),
    Pattern("nodes-without-names", graphs.nameless, "int8"),
    # shapes of convolution
    Pattern("depthwise", lambda: graphs.convolution([1, 16, 16, 16], [16, 1, 3, 3], group=16), "int8"),
    Pattern("conv-1d", lambda: graphs.convolution([1, 16, 32], [16, 16, 3]), "int8"),
    Pattern("conv-3d", lambda: graphs.convolution([1, 16, 8, 8, 8], [16, 16, 3, 3, 3]), "int8"),
    Pattern("stride-2", lambda: graphs.convolution([1, 16, 16, 16], [16, 16, 3, 3], strides=[2, 2]), "int8"),
    Pattern("odd-channels", lambda: graphs.convolution([1, 5, 16, 16], [3, 5, 3, 3]), "int8"),
    Pattern("conv-1x1", lambda: graphs.convolution([1, 16, 16, 16], [16, 16, 1, 1]), "int8"),
    Pattern("grouped", lambda: graphs.convolution([1, 16, 16, 16], [16, 4, 3, 3], group=4), "int8"),
    Pattern("dilated", lambda: graphs.convolution([1, 16, 16, 16], [16, 16, 3, 3], dilations=[2, 2]), "int8"),
    # blocks of diffusion models
    *(Pattern(name, build, compiled) for name, (build, compiled) in blocks.BLOCKS.items()),
)
