"""What stands in an artifact's manifest?"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from gacq_deploy.artifact.call import CallRecord, DType
from gacq_deploy.artifact.smoothing import SmoothingRecord
from gacq_deploy.storage.documents import shown
from gacq_deploy.storage.records import ListedFile, OpenRecord, Record, as_record

_YEAR_10000 = 253_402_300_800
"""In seconds since 1970: no calendar goes further."""


class SchedulerRecord(OpenRecord):
    """What is asked of a scheduler's configuration; whoever follows it reads the rest."""

    class_name: str = Field(default="", alias="_class_name")
    use_default_values: tuple[str, ...] | None = Field(default=None, alias="_use_default_values")
    num_train_timesteps: int = Field(default=1000, ge=1)


class ConditionRecord(Record):
    """One tensor of conditioning."""

    dtype: DType
    shape: tuple[int, ...]
    """Of one row."""
    num_classes: int | None = Field(default=None, ge=1)


class LoraRecord(Record):
    """One adapter that was fused into the denoiser."""

    source: str
    sha256: str
    """Of its file."""
    scale: float


class ModelRecord(Record):
    """Where the float model came from."""

    source: str
    revision: str | None
    """Commit that was taken of a model of the hub; of any other what the recipe names, which means nothing there."""
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

    def check_parts(self, *, where: str, hint: str) -> None:
        """Check what is kept as somebody else wrote it, once it was read from ``where``.

        Raises:
            ArtifactError: the scheduler's configuration or a condition is not one.
        """
        as_record(SchedulerRecord, self.scheduler, where=f"model.scheduler in {where}", hint=hint)
        for name, said in self.conditioning.items():
            place = f"model.conditioning.{shown(name)} in {where}"
            as_record(ConditionRecord, said, where=place, hint=hint)

    @property
    def name(self) -> str:
        """What people call the model: the folder of its pipeline, the hub's name, or that of a built-in one."""
        place = Path(self.source.rpartition(":")[2])
        inside = place.name in ("unet", "transformer", "model")
        return (place.parent.name if inside else place.name) or place.name or self.source


class SiteRecord(Record):
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


class BlockRecord(Record):
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


class PolishRecord(Record):
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


class ParameterRecord(Record):
    """One retrained parameter on disk."""

    name: str
    source_sha256: str
    """Digest of the float model's own value: the exporter finds the constant by it."""


class StageRecord(Record):
    """What one stage of calibration took and gave."""

    seconds: float
    sqnr_db: float
    """Of the output in the worst timestep bucket, against the float model."""
    kept: bool


class BuildRecord(OpenRecord):
    """Times and host facts of a calibration; versions of libraries lie among them."""

    work_key: str | None = None
    started_unix: float | None = Field(default=None, ge=0, lt=_YEAR_10000)
    stages: dict[str, StageRecord] = Field(default_factory=dict)


class ArtifactManifest(Record):
    """What an artifact's ``manifest.json`` says under its digest."""

    schema_: Literal["gacq-deploy/artifact"] = Field(default="gacq-deploy/artifact", alias="schema")
    schema_version: int
    model: ModelRecord
    recipe: dict[str, Any]
    """Sections of the recipe that decide what calibration learns."""
    samples_sha256: str
    plan: tuple[SiteRecord, ...]
    parameters: tuple[ParameterRecord, ...]
    history: tuple[BlockRecord, ...]
    polish: PolishRecord | None
    files: dict[str, ListedFile]
