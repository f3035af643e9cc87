"""What does ``samples.json`` say: which samples lie beside it, and how the pipeline was called that made them?"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from gacq_deploy.artifact.call import CallRecord
from gacq_deploy.artifact.records import SchedulerRecord
from gacq_deploy.errors import RESTORE
from gacq_deploy.storage.records import Record, as_record, load_record


class LayoutRecord(Record):
    """Which row of a recorded call belongs to which image."""

    branches: int = Field(ge=1)
    by_image: bool
    negative: int | None = Field(ge=0)


class SamplesRecord(Record):
    """Digests of samples and probe states; what is None was not recorded, for the trajectories were drawn."""

    key: str
    """Digest of what the samples depend on."""
    sha256: str
    probe_sha256: str | None = None
    call: CallRecord | None = None
    scheduler: dict[str, Any] | None = None
    layout: LayoutRecord | None = None
    guidance_scale: float | None = None

    @model_validator(mode="after")
    def _is_recorded_whole(self) -> Self:
        recorded = (self.probe_sha256, self.call, self.scheduler, self.layout, self.guidance_scale)
        if None in recorded and any(value is not None for value in recorded):
            raise ValueError("a pipeline's run is recorded in part")
        return self


def load_samples_record(path: Path) -> SamplesRecord:
    """Read the record.

    Raises:
        ArtifactError: missing, or of another form.
    """
    record = load_record(SamplesRecord, path, what="Samples record", hint=RESTORE)
    as_record(SchedulerRecord, record.scheduler or {}, where=f"'scheduler' in {path}", hint=RESTORE)
    return record
