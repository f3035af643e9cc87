"""In which kernel does each quantized layer really run? That decides the speed of INT8."""

from __future__ import annotations

from dataclasses import dataclass

from gacq_deploy.graph.quantized_layers import GraphLayer


@dataclass(frozen=True)
class KernelUse:
    """What the engine made of one quantized layer."""

    layer: GraphLayer
    kernel: str
    """The engine's own name of what runs, e.g. ``QLinearConv`` or ``brgconv_avx512_I8``."""
    integer: bool
