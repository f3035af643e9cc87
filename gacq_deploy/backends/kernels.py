"""In which kernel does each quantized layer really run? That decides the speed of INT8."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto, TensorProto

from gacq_deploy.backends import import_attribute, pip_line
from gacq_deploy.errors import UsageError

REPORTS: dict[str, str] = {
    "ort-cpu": "gacq_deploy.backends.ort:integer_kernels",
    "openvino": "gacq_deploy.backends.openvino:integer_kernels",
}
"""Engine name -> ``module:function`` taking a model and returning a tuple of :class:`KernelUse`."""

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class QuantizedLayer:
    """A Conv, Gemm or MatMul with integer weights: node name, op type, name of the codes initializer."""

    node: str
    op_type: str
    codes: str


@dataclass(frozen=True)
class KernelUse:
    """What the engine made of one quantized layer."""

    layer: QuantizedLayer
    kernel: str
    """The engine's own name of what runs, e.g. ``QLinearConv`` or ``brgconv_avx512_I8``."""
    integer: bool


def executed_kernels(name: str, model: Path | bytes) -> tuple[KernelUse, ...]:
    """Return for every layer with integer weights in ``model`` the kernel that the engine ``name`` runs.

    Raises:
        UsageError: this engine cannot tell.
        BackendUnavailable, ArtifactError, EngineError: as for ``open_engine``.
    """
    if name not in REPORTS:
        raise UsageError(f"Engine '{name}' does not tell its kernels.", f"Ask one of: {', '.join(REPORTS)}.")
    report: Callable[[Path | bytes], tuple[KernelUse, ...]] = import_attribute(
        REPORTS[name], what=f"Engine '{name}'", hint=pip_line(name)
    )
    return report(model)


def quantized_layers(proto: ModelProto) -> tuple[QuantizedLayer, ...]:
    """Return the layers whose weight is an integer initializer behind DequantizeLinear, in graph order."""
    codes = {
        i.name
        for i in proto.graph.initializer
        if i.data_type in (TensorProto.INT8, TensorProto.UINT8, TensorProto.INT4, TensorProto.UINT4)
        and i.dims
    }
    weights = {
        node.output[0]: node.input[0]
        for node in proto.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in codes
    }
    return tuple(
        QuantizedLayer(node.name, node.op_type, weights[node.input[1]])
        for node in proto.graph.node
        if node.op_type in WEIGHTED and node.input[1] in weights
    )
