"""What did the user ask of the engine? The recipe's section for building."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gacq_deploy.engines.catalogue import TrtName
from gacq_deploy.recipe.calibration import MEGABYTES_MAX, Section

FloatType = Literal["float16", "float32"]
_Capability = Annotated[str, Field(pattern=r"^[0-9]{1,2}[.][0-9]$")]


class BuildSection(Section):
    """Which engine plans `build-trt` makes of the Q/DQ graph."""

    backend: Literal["auto"] | TrtName = "auto"
    """`auto`: TensorRT where it and a GPU are present, else TensorRT-RTX, which compiles without one."""
    batch: tuple[str, ...] = ("1:4:8",)
    """`N`, `MIN:MAX` or `MIN:OPT:MAX`; each entry is a profile of its own, tuned for OPT."""
    resolution: tuple[str, ...] = ()
    """`HxW`, `MIN:MAX` or `MIN:OPT:MAX` of the denoiser's own input (latents), where the graph leaves them open."""
    float_type: FloatType = "float16"
    """Type of everything that is not INT8; what float16 cannot hold stays float32."""
    compute_capabilities: tuple[_Capability, ...] = ()
    """GPU generations (`8.6`) to compile for with TensorRT-RTX; none: one portable plan."""
    workspace_mb: int | None = Field(default=None, ge=1, le=2**24)
    """Scratch memory of the kernels; none: the library's choice."""
    opt_level: int | None = Field(default=None, ge=0, le=5)
    """How long the builder searches; none: the library's choice (3)."""
    timing_cache: bool = True
    """Keep kernel timings in the run directory, for faster and steadier rebuilds (TensorRT only)."""
    refit: bool = False
    """Let the weights be replaced later."""
    strip: bool = False
    """Leave the weights out of the plan."""
    hw_compat: bool = False
    """Run on every GPU from Ampere on, slower (TensorRT only)."""
    version_compat: bool = False
    """Run on later TensorRT versions too; the plan then carries code, which only runs when allowed."""
    fp16_baseline: bool | None = None
    """Build the float graph too, to compare with; none: where a GPU is present."""
    min_int8_coverage: float = Field(default=0.95, ge=0, le=1)
    """Least share of the planned layers that must compile to INT8, and of the INT4 weights that must stay INT4."""
    timeout_s: float = Field(default=3600, gt=0)
    """Seconds after which the builder is stopped."""
    memory_mb: int | None = Field(default=None, ge=64, le=MEGABYTES_MAX)
    """Bound on the builder process; none: what the machine has."""
