"""What stands in an artifact's manifest?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from gacq_deploy.artifact.call import CallRecord
from gacq_deploy.artifact.smoothing import SmoothingRecord


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LoraRecord(_Record):
    """One adapter that was fused into the denoiser."""

    source: str
    sha256: str
    """Of its file."""
    scale: float


class ModelRecord(_Record):
    """Where the float model came from."""

    source: str
    revision: str | None
    family: str
    weights_sha256: str
    prediction_type: str
    scheduler: dict[str, Any]
    """diffusers scheduler configuration, plain JSON."""
    alphas_cumprod: tuple[float, ...] | None = Field(default=None, exclude=True, repr=False)
    """The noise schedule, float32, cumulative products of ``1 - beta`` over all training timesteps; None where DDIM has
    no part in it. An artifact keeps it among its tensors."""
    sample_shape: tuple[int, ...]
    """[C, H, W]"""
    conditioning: dict[str, dict[str, Any]]
    """input name -> {dtype, shape, num_classes}"""
    call: CallRecord | None = None
    """How the denoiser is called, as recorded; None where its family's configuration says it."""
    loras: tuple[LoraRecord, ...] = ()
    """Low-rank adapters that were fused into the weights before calibration."""

    @property
    def name(self) -> str:
        """What people call the model: the folder of its pipeline, the hub's name, or that of a built-in one."""
        place = Path(self.source.rpartition(":")[2])
        inside = place.name in ("unet", "transformer", "model")
        return (place.parent.name if inside else place.name) or place.name or self.source


class SiteRecord(_Record):
    """One planned site on disk."""

    site: str
    bits: int
    axis: int | None
    narrow: bool
    tie: str
    range: str
    source_sha256: str | None = None
    """Digest of the float weight (role weight): the exporter finds the layer by it."""
    block: int | None = None
    smoothing: SmoothingRecord | None = None
    """Of an input site; versions that do not know it refuse the artifact."""


class BlockRecord(_Record):
    """What happened in one reconstructed block."""

    name: str
    sites: int
    loss_start: float
    loss_end: float
    kept: bool
    """False when nearest rounding was better and was restored."""
    effective_samples: float
    """(sum w)^2 / sum w^2 of the sample weights."""
    notes: tuple[str, ...] = ()
    """Warnings and fallbacks, in words."""


class PolishRecord(_Record):
    """What happened when scales and float parameters were trained jointly, after the last block."""

    steps: int
    loss_start: float
    loss_end: float
    kept: bool
    """False when the model was better before and was restored."""
    parameters: tuple[str, ...]
    """Kinds of parameters that were trained, as the recipe names them."""
    objective: str
    effective_samples: float
    """(sum w)^2 / sum w^2 of the sample weights."""
    notes: tuple[str, ...] = ()


class ParameterRecord(_Record):
    """One retrained parameter on disk."""

    name: str
    source_sha256: str
    """Digest of the float model's own value: the exporter finds the constant by it."""
