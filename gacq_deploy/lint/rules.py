"""Which patterns does an engine refuse, compute wrongly, or run in float? One table of rules.

The rules were found by giving each pattern to NVIDIA's own parser and compiler, to ONNX Runtime and to
OpenVINO. An error is what an engine refuses, crashes on or computes wrongly without a word; a warning costs
speed or accuracy; an info is a choice worth knowing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from gacq_deploy.engines.catalogue import LintRules
from gacq_deploy.lint import numbers, operators, placement
from gacq_deploy.lint.view import Hit, QuantView

Severity = Literal["error", "warn", "info"]
Outcome = Literal["int8", "float", "refused", "crash"]
"""What TensorRT's parser and compiler make of a layer; the last two end the whole build."""
RULE_SETS: tuple[LintRules, ...] = get_args(LintRules)
SEVERITIES: tuple[Severity, ...] = get_args(Severity)


@dataclass(frozen=True)
class Finding:
    """One rule that applies at one node."""

    rule: str
    severity: Severity
    node: str
    detail: str
    effect: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.rule}: {self.node}: {self.detail}. {self.effect} {self.remedy}"


@dataclass(frozen=True)
class LintRule:
    """A pattern, how bad it is for each target, what it does there and what helps.

    Targets missing in ``severity`` do not mind. ``compiled`` is what TensorRT makes of the layers that read
    the node found (of the whole graph, where it refuses or crashes); int8: the pattern does not keep a layer
    from integer arithmetic.
    """

    id: str
    find: Callable[[QuantView], Iterator[Hit]]
    severity: Mapping[LintRules, Severity]
    effect: str
    remedy: str
    compiled: Outcome = "int8"


def _everywhere(severity: Severity) -> dict[LintRules, Severity]:
    return dict.fromkeys(RULE_SETS, severity)


_STRICT: dict[LintRules, Severity] = {"tensorrt": "error", "ort-cpu": "warn", "openvino": "warn"}
"""Refused or wrong in TensorRT, slower elsewhere."""
# fmt: off
RULES: tuple[LintRule, ...] = (
    # numbers and types
    LintRule("scale-not-positive", numbers.scale_not_positive, _everywhere("error"),
         "TensorRT refuses it; ONNX and ONNX Runtime accept it and compute nonsense.",
         "Clamp the scales of dead channels to a small positive number.", "refused"),
    LintRule("scale-not-finite", numbers.scale_not_finite, _everywhere("error"),
         "Integers hide the NaN: the output looks plausible and is wrong.",
         "Calibrate again; find the NaN's source."),
    LintRule("scale-denormal", numbers.scale_denormal, _everywhere("error"),
         "Engines that flush denormals divide by zero.",
         "Clamp scales to the smallest normal number or above."),
    LintRule("scale-run-time", numbers.scale_at_run_time, _STRICT,
         "TensorRT's builder crashes; other engines leave their integer kernels.", "Store static scales.", "crash"),
    LintRule("weight-scale-run-time", numbers.weight_scale_at_run_time, _STRICT,
         "TensorRT's builder refuses it; other engines leave their integer kernels.", "Store static scales.",
         "refused"),
    LintRule("scale-half", numbers.scale_half, {"tensorrt": "warn"},
         "About 1 % of the codes differ by one, and scales below 6e-5 lose precision.",
         "Store float32 scales; in a half graph put Casts around Q and DQ."),
    LintRule("zero-point-not-zero", numbers.zero_point_not_zero, {"tensorrt": "error"},
         "TensorRT refuses it: quantization is symmetric only.", "Give it the signed graph (int8.onnx).", "refused"),
    LintRule("zero-point-missing", numbers.zero_point_missing, _STRICT,
         "ONNX then means uint8, TensorRT takes int8: the engines disagree.", "Write an int8 zero point."),
    LintRule("zero-point-type", numbers.zero_point_type, _everywhere("error"),
         "Codes and zero point must have one type, int8 or uint8 (int32 for a bias).",
         "Mend the zero point's type."),
    LintRule("zero-point-shape", numbers.zero_point_shape, {"tensorrt": "error"},
         "TensorRT refuses it; ONNX asks for it.", "Write one zero point for each scale.", "refused"),
    LintRule("code-type", numbers.code_type_unsupported, {"tensorrt": "error"},
         "TensorRT refuses 16-bit codes.", "Quantize to int8.", "refused"),
    LintRule("uint8-codes", numbers.uint8_codes, {"tensorrt": "error"},
         "TensorRT silently reads uint8 as int8: 0..255 becomes -128..127.",
         "Give it the signed graph (int8.onnx)."),
    LintRule("uint8-weights", numbers.uint8_weights, {"tensorrt": "error"},
         "TensorRT refuses stored uint8 codes.", "Give it the signed graph (int8.onnx).", "refused"),
    LintRule("signed-activations", numbers.signed_activations, {"ort-cpu": "warn"},
         "ONNX Runtime converts int8 activations only in simple patterns; the rest runs in float.",
         "Use uint8 with zero point 128 (int8.cpu.onnx)."),
    LintRule("signed-activations-opset", numbers.signed_activations_new_opset, {"ort-cpu": "warn"},
         "ONNX Runtime 1.31 and 1.32 fail to load some such graphs.",
         "Export at opset 20, or uint8 (int8.cpu.onnx)."),
    LintRule("channel-count", numbers.channel_count, _everywhere("error"),
         "The scales do not fit the weight.", "Write one scale per output channel.", "refused"),
    LintRule("weight-axis", numbers.wrong_axis, _STRICT,
         "TensorRT builds it without a word and falls back to half precision.",
         "Quantize along the output channels: Conv 0, Gemm with transB 0, MatMul the last axis.", "float"),
    LintRule("weight-rounded-by-engine", numbers.weight_rounded_by_engine, _everywhere("warn"),
         "The engine rounds the weight anew, which undoes learned rounding; the file is four times as large.",
         "Store int8 codes and a DequantizeLinear."),
    LintRule("weight-per-tensor", numbers.weight_per_tensor, _everywhere("info"),
         "One scale for all output channels costs accuracy.", "Use one scale per output channel."),
    LintRule("weight-code-128", numbers.code_minus_128, _everywhere("warn"),
         "Some engines document [-127, 127] for weights.", "Clip weight codes to [-127, 127]."),
    LintRule("activation-per-channel", numbers.per_channel_activation, _STRICT,
         "The layer falls back to half or float precision.", "Use one scale per activation tensor.", "float"),
    LintRule("activation-scale-rank", numbers.activation_scale_rank, {"tensorrt": "warn"},
         "TensorRT reads a vector of one scale as one scale per channel and runs the convolution in float.",
         "Store the scale as a scalar.", "float"),
    LintRule("block-scales", numbers.block_scales, {"tensorrt": "error"},
         "TensorRT's builder refuses blocks of weight scales beside a quantized activation.",
         "Use one scale per output channel, or leave the activation float.", "refused"),
    LintRule("block-ragged", numbers.ragged_blocks, {"tensorrt": "error"},
         "TensorRT refuses it, or takes all blocks for equally small ones without a word.",
         "Choose a block that divides the weight, or leave the layer float.",
         "refused"),
    LintRule("block-single", numbers.one_block, {"tensorrt": "warn"},
         "TensorRT dequantizes the weight in a kernel of its own before each product: smaller, but slower.",
         "Give the weight at least two blocks along its input features."),
    LintRule("block-cast", numbers.cast_blocks, {"tensorrt": "warn"},
         "TensorRT dequantizes the weight in a kernel of its own before each product: smaller, but slower.",
         "Store the block scales in half, the type of the product."),
    LintRule("low-bit-opset", numbers.low_bit_opset, {"tensorrt": "warn", "ort-cpu": "error", "openvino": "error"},
         "4-bit codes and blocks came with opset 21; ONNX Runtime refuses them before.", "Export at opset 21 or 22."),
    LintRule("low-bit-convolution", numbers.low_bit_convolution, {"tensorrt": "error"},
         "TensorRT has no convolution with weights below 8 bits.", "Use int8 codes.", "refused"),
    LintRule("float8-codes", numbers.float8_codes, {"tensorrt": "info"},
         "The layer runs in FP8, on GPUs that have it, not in INT8.", "Quantize to int8 if INT8 is meant.",
         "float"),
    LintRule("bias-int32", numbers.integer_bias, {"tensorrt": "error"},
         "TensorRT refuses an int32 bias.", "Keep the bias float (int8.onnx).", "refused"),
    LintRule("bias-float", numbers.float_bias, {"ort-cpu": "warn"},
         "ONNX Runtime rounds the bias itself where it can, else the convolution stays a float kernel.",
         "Store the bias as int32 codes with scale s_x * s_w."),
    LintRule("bias-overflow", numbers.bias_overflow, {"ort-cpu": "error"},
         "ONNX Runtime converts the bias to int32 and overflows without a word.",
         "Add the bias behind the convolution, or raise the scale of channels whose weights are nothing."),
    LintRule("bias-scale", numbers.bias_scale, {"ort-cpu": "error"},
         "The integer kernel ignores the bias's own scale: the sum is wrong.",
         "Give the bias the scale s_x * s_w."),
    LintRule("mixed-floats", numbers.mixed_floats, _everywhere("error"),
         "Engines refuse a layer whose operands differ in float type.",
         "Dequantize both operands to one type.", "refused"),
    # placement
    LintRule("activation-only", placement.activation_only, _everywhere("warn"),
         "The layer runs in float and pays for quantization.", "Quantize activation and weight, or neither.", "float"),
    LintRule("weight-only-conv", placement.weight_only_conv, _everywhere("warn"),
         "The convolution runs in float.", "Quantize activation and weight, or neither.", "float"),
    LintRule("weight-only-matmul", placement.weight_only_matmul, _everywhere("info"),
         "A smaller file, but no integer arithmetic.", "Nothing, if that is meant; else quantize the activation too.",
         "float"),
    LintRule("several-scales", placement.several_scales, _everywhere("warn"),
         "Layers that could share one quantized tensor each quantize it anew.", "Use one scale per tensor."),
    LintRule("concat-scales", placement.concat_branches, _everywhere("warn"),
         "The layer behind the concatenation falls back to half or float precision.",
         "Share one scale between the branches, or quantize after the concatenation.", "float"),
    LintRule("attention-product", placement.attention_product, {"tensorrt": "warn", "openvino": "info"},
         "Quantized attention products break the fused attention kernel, unless all four operands are quantized.",
         "Leave Q·K and P·V in float."),
    LintRule("product-of-one", placement.product_of_one, {"tensorrt": "warn", "openvino": "info"},
         "The product runs in float and pays for quantization.", "Quantize both operands, or neither.", "float"),
    LintRule("conv-transpose", placement.transposed_convolution, _everywhere("warn"),
         "No integer kernel was found for it: it runs in half or float.", "Leave ConvTranspose in float.", "float"),
    LintRule("conv-output-quantized", placement.quantized_conv_output, {"tensorrt": "info", "openvino": "info"},
         "One more rounding that this engine does not need.", "Quantize layer inputs only (int8.onnx)."),
    LintRule("conv-output-float", placement.float_conv_output, {"ort-cpu": "warn"},
         "ONNX Runtime has no integer convolution with a float output: it runs in float.",
         "Quantize convolution outputs too (int8.cpu.onnx)."),
    LintRule("orphan-quantize", placement.orphan_quantizer, _everywhere("error"),
         "Codes reach an operator as if they were values.",
         "Put a DequantizeLinear behind every QuantizeLinear."),
    LintRule("orphan-dequantize", placement.orphan_dequantizer, _everywhere("error"),
         "A dequantizer without codes, or without a reader, is left of a damaged graph.",
         "Export the graph again."),
    LintRule("double-pair", placement.double_pair, _everywhere("info"),
         "One more rounding.", "Keep one pair per tensor where the engine allows it."),
    LintRule("residual-branches", placement.residual_branches, {"tensorrt": "info"},
         "An addition of two quantized branches may cost an extra kernel.",
         "Quantize one residual branch at most."),
    LintRule("inside-normalization", placement.inside_normalization, {"tensorrt": "warn", "openvino": "warn"},
         "The fused kernel of normalization, SiLU or softmax breaks into pieces.",
         "Quantize the layer's input only."),
    LintRule("nothing-quantized", placement.nothing_quantized, _everywhere("warn"),
         "The graph is a float graph.", "Lint int8.onnx or int8.cpu.onnx."),
    # operators
    LintRule("opset-refused", operators.opset_refused, _everywhere("error"),
         "Opsets below 13 have no per-channel Q/DQ; parsers end at 25.", "Export at opset 20."),
    LintRule("opset-untested", operators.opset_untested, _everywhere("warn"),
         "Q/DQ is read differently by different engines outside opset 19 to 22.", "Export at opset 20."),
    LintRule("attention-operator", operators.attention_operator, {"tensorrt": "warn"},
         "TensorRT refuses it where it has no fused kernel, unless it may take it apart, as build-trt lets it.",
         "Export at opset 22 or below."),
    LintRule("integer-operator", operators.integer_operator, {"tensorrt": "error", "openvino": "warn"},
         "TensorRT's parser does not know it.", "Write Q/DQ around the float operator.", "refused"),
    LintRule("foreign-domain", operators.foreign_domain, {"tensorrt": "error", "openvino": "error"},
         "The engine does not know the operator.", "Use standard ONNX operators.", "refused"),
    LintRule("foreign-namesake", operators.foreign_namesake, {"tensorrt": "warn", "openvino": "error"},
         "TensorRT takes it for the standard operator of that name.", "Use standard ONNX operators."),
    LintRule("foreign-domain", operators.foreign_domain_onnxruntime, {"ort-cpu": "error"},
         "ONNX Runtime does not ship the operator.", "Use standard ONNX operators."),
)
# fmt: on
