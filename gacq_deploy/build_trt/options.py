"""What is the compiler asked for? Plain data that travels to the child process and into the engine's key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from gacq_deploy.backends.trt.profiles import Shape
from gacq_deploy.engines.catalogue import TrtName


class ShapeRange(BaseModel):
    """Smallest, most usual and largest shape of one input; kernels are tuned for ``opt``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min: Shape
    opt: Shape
    max: Shape

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not len(self.min) == len(self.opt) == len(self.max):
            raise ValueError(f"ranks differ: {self}")
        for low, mid, high in zip(self.min, self.opt, self.max, strict=True):
            if not 0 < low <= mid <= high:
                raise ValueError(f"needs 0 < min <= opt <= max in every dimension: {self}")
        return self

    def __str__(self) -> str:
        parts = ["x".join(map(str, shape)) for shape in (self.min, self.opt, self.max)]
        return parts[0] if len(set(parts)) == 1 else " : ".join(parts)


ProfileRanges = Mapping[str, ShapeRange]
"""Input name -> shapes: one optimization profile."""


class CompileOptions(BaseModel):
    """Everything that decides what the builder writes, but the graph."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backend: TrtName
    profiles: tuple[dict[str, ShapeRange], ...] = ()
    compute_capabilities: tuple[str, ...] = ()
    """GPU generations to compile for (``8.6``); empty: the device present, or one portable engine (TensorRT-RTX)."""
    workspace_mb: int | None = Field(default=None, ge=1)
    """Scratch memory kernels may use; None: the library's choice."""
    opt_level: int | None = Field(default=None, ge=0, le=5)
    refit: bool = False
    strip: bool = False
    """Leave the weights out of the engine; they are put back by refitting."""
    hw_compat: bool = False
    """Run on every GPU from Ampere on, slower (TensorRT only)."""
    version_compat: bool = False
    """Run on later TensorRT versions too; the engine then carries code of its own."""
    timing_cache: str | None = None
    """File that keeps kernel timings between builds (TensorRT only)."""
