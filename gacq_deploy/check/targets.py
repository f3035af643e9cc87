"""What is known of each target that a graph can be checked for: operators, operator sets, and on what evidence?

`tensorrt-rtx`: every operator of ONNX's own node tests was given to TensorRT-RTX 1.7.1. `tensorrt-10`: the operator
table that NVIDIA publishes for 10.15. `tensorrt-11`: NVIDIA's range of operator sets for 11.x, and the operators of
TensorRT-RTX 1.7.1, whose parser is the same but for plugins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from gacq_deploy.engines.catalogue import LintRules, TrtName

Target = Literal["tensorrt-11", "tensorrt-10", "tensorrt-rtx", "ort-cpu"]
CHECK_TARGETS: tuple[Target, ...] = get_args(Target)
BY_NAME: Mapping[str, Target] = {"tensorrt": CHECK_TARGETS[0], **{name: name for name in CHECK_TARGETS}}
"""What may be asked for: an engine's name means its newest version."""


@dataclass(frozen=True)
class TargetFacts:
    """``compiled`` are the operators that were seen to compile, ``refused`` those the parser does not know.

    Operators in neither are open questions. ``opsets`` is the range that is documented or was tried. ``library`` and
    ``major`` say which installed package can speak for the target.
    """

    rules: LintRules
    opsets: range
    refused: frozenset[str] = frozenset()
    compiled: frozenset[str] | None = None
    """None: the engine answers for every standard operator itself, when it loads the graph."""
    library: TrtName | None = None
    major: int | None = None


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_COMPILED = _names(
    """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool BatchNormalization
    BlackmanWindow Cast CastLike CausalConvWithState Ceil Celu Clip Concat Constant ConstantOfShape Conv
    ConvTranspose Cos Cosh CumSum DepthToSpace DequantizeLinear Div Dropout Einsum Elu Equal Erf Exp
    Expand EyeLike Flatten Floor GRU Gather GatherElements GatherND Gelu Gemm GlobalAveragePool
    GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization HammingWindow
    HannWindow HardSigmoid HardSwish Hardmax Identity If InstanceNormalization IsInf IsNaN LRN LSTM
    LayerNormalization LeakyRelu Less LessOrEqual LinearAttention Log LogSoftmax Loop LpNormalization
    LpPool MatMul Max MaxPool Mean MeanVarianceNormalization Min Mish Mod Mul Neg NonMaxSuppression
    NonZero Not OneHot Or PRelu Pad Pow QuantizeLinear RMSNormalization RNN RandomNormal
    RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum
    ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape
    Resize ReverseSequence RoiAlign RotaryEmbedding Round STFT Scan Scatter ScatterElements ScatterND
    Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt
    Squeeze Sub Sum Swish Tan Tanh TensorScatter ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze
    Upsample Where Xor
    """
)
_REFUSED = _names(
    """
    AffineGrid Bernoulli BitCast BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor CenterCropPad
    Col2Im Compress ConcatFromSequence ConvInteger CumProd DFT DeformConv Det DynamicQuantizeLinear
    ImageDecoder MatMulInteger MaxRoiPool MaxUnpool MelWeightMatrix Multinomial
    NegativeLogLikelihoodLoss Optional OptionalGetElement OptionalHasElement QLinearConv QLinearMatMul
    RegexFullMatch SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert
    SequenceLength SequenceMap SoftmaxCrossEntropyLoss SplitToSequence StringConcat StringNormalizer
    StringSplit SwiGLU TfIdfVectorizer Unique
    """
)
_PLUGIN = frozenset({"DeformConv"})
"""Operators that TensorRT, but not TensorRT-RTX, runs by a plugin of its own."""
_AFTER_10 = frozenset({"CausalConvWithState", "LinearAttention", "Swish"})
"""Operators that TensorRT-RTX 1.7 compiles and the table of TensorRT 10.15 does not list."""
_OPEN_IN_10 = frozenset({"BitCast", "CumProd", "SwiGLU"})
"""Operators that TensorRT-RTX 1.7 refuses and the table of TensorRT 10.15 does not list."""

FACTS: Mapping[Target, TargetFacts] = {
    "tensorrt-11": TargetFacts("tensorrt", range(9, 26), _REFUSED - _PLUGIN, _COMPILED, "tensorrt", 11),
    "tensorrt-10": TargetFacts(
        "tensorrt", range(9, 25), _REFUSED - _PLUGIN - _OPEN_IN_10, _COMPILED - _AFTER_10, "tensorrt", 10
    ),
    "tensorrt-rtx": TargetFacts("tensorrt", range(11, 27), _REFUSED, _COMPILED, "tensorrt-rtx"),
    "ort-cpu": TargetFacts("ort-cpu", range(13, 26)),
}
