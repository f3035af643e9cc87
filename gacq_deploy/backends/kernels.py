"""In which kernel does each quantized layer really run? That decides the speed of INT8."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gacq_deploy.backends import import_attribute, pip_line
from gacq_deploy.errors import UsageError
from gacq_deploy.graph.quantized_layers import QuantizedLayer

REPORTS: dict[str, str] = {
    "ort-cpu": "gacq_deploy.backends.ort:integer_kernels",
    "openvino": "gacq_deploy.backends.openvino:integer_kernels",
}
"""Engine name -> ``module:function`` taking a model and returning a tuple of :class:`KernelUse`."""


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
