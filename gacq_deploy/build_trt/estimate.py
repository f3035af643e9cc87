"""How long will the compiler take, and how much memory? For the ETA and the dry run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gacq_deploy.graph.files import data_path
from gacq_deploy.graph.header import read_header

_SECONDS = 1.0
_SECONDS_A_LAYER = 0.03
_SECONDS_A_BYTE = 7.4e-9
_MEMORY_MB = 350
_MEMORY_A_BYTE = 3.7
"""Measured with TensorRT-RTX, which times no kernels: UNets of 0.3 to 2.6 billion weights (benchmarks/large_export.py).
"""


@dataclass(frozen=True)
class Estimate:
    """Seconds and megabytes of one build on this machine's kind of CPU, within a factor of two or so."""

    seconds: float
    memory_mb: int
    layers: int


def estimate_build(graph: Path) -> Estimate:
    """Estimate from the number of weighted layers and the file's size.

    Raises:
        ArtifactError: not an ONNX file.
    """
    model = read_header(graph)
    layers = sum(node.op_type in ("Conv", "Gemm", "MatMul", "ConvTranspose") for node in model.graph.node)
    data = data_path(graph)
    size = graph.stat().st_size + (data.stat().st_size if data.is_file() else 0)
    return Estimate(
        seconds=_SECONDS + _SECONDS_A_LAYER * layers + _SECONDS_A_BYTE * size,
        memory_mb=_MEMORY_MB + round(_MEMORY_A_BYTE * size / 2**20),
        layers=layers,
    )
