"""What is already learned? Finished blocks on disk, valid for exactly one set of inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from gacq_deploy.errors import RESTORE, ArtifactError
from gacq_deploy.spec import Array
from gacq_deploy.storage.arrays import load_arrays, save_arrays
from gacq_deploy.storage.digests import describe_file, verify_file
from gacq_deploy.storage.documents import shown
from gacq_deploy.storage.files import write_json
from gacq_deploy.storage.records import ListedFile, Record, load_record

_SCHEMA = "gacq-deploy/work/1"


class StepFile(ListedFile):
    """The file of one finished step."""

    file: str


class CheckpointRecord(Record):
    """What ``checkpoint.json`` says."""

    schema_: Literal["gacq-deploy/work/1"] = Field(alias="schema")
    key: str
    steps: dict[str, StepFile]

    @field_validator("steps")
    @classmethod
    def _files_are_named_after_steps(cls, steps: dict[str, StepFile]) -> dict[str, StepFile]:
        for name, entry in steps.items():
            number = entry.file.removesuffix(f"-{name}.safetensors")
            if "/" in name or not (number.isdecimal() and entry.file != number):
                raise ValueError(f"step '{shown(name)}' is not in {shown(entry.file)}")
        return steps


def load_checkpoint(path: Path) -> CheckpointRecord:
    """Read which steps are finished.

    Raises:
        ArtifactError: missing, or of another form.
    """
    return load_record(CheckpointRecord, path, what="Calibration checkpoint", hint=RESTORE)


class _StepArrays(dict[str, Array]):
    """Arrays of a finished step; one that another version would have saved is missed in words."""

    def __init__(self, arrays: Mapping[str, Array], where: str) -> None:
        super().__init__(arrays)
        self._where = where

    def __missing__(self, name: str) -> Array:
        raise ArtifactError(f"{self._where} lacks '{name}'.", RESTORE)


@dataclass(frozen=True)
class Checkpoint:
    """Entries of finished steps. A step counts only once the checkpoint names its file and sha256.

    ``key`` is the digest of everything the steps were computed from; a checkpoint with another key is ignored.
    """

    folder: Path
    key: str

    def get(self, step: str) -> dict[str, Array] | None:
        """Return what ``step`` saved, or None if it is not finished.

        Raises:
            ArtifactError: the checkpoint names a file that was altered.
        """
        entry = self._entries().get(step)
        if entry is None:
            return None
        path, what = self.folder / str(entry["file"]), f"Finished step '{step}'"
        verify_file(path, entry, what=what, hint=RESTORE)
        return _StepArrays(
            load_arrays(path, what=what, hint=RESTORE, sha256=str(entry["sha256"])), f"{what} in {path}"
        )

    def put(self, step: str, arrays: Mapping[str, Array]) -> None:
        """Save a finished step: its file first, then the checkpoint."""
        entries = self._entries()
        name = f"{len(entries):03d}-{step}.safetensors" if step not in entries else str(entries[step]["file"])
        save_arrays(self.folder / name, arrays, schema=_SCHEMA)
        entries[step] = {"file": name, **describe_file(self.folder / name)}
        write_json(self._path, {"schema": _SCHEMA, "key": self.key, "steps": entries})

    @property
    def steps(self) -> tuple[str, ...]:
        """Finished steps in order."""
        entries = self._entries()
        return tuple(sorted(entries, key=lambda step: str(entries[step]["file"])))

    @property
    def _path(self) -> Path:
        return self.folder / "checkpoint.json"

    def _entries(self) -> dict[str, dict[str, Any]]:
        if not self._path.is_file():
            return {}
        record = load_checkpoint(self._path)
        return (
            {step: entry.model_dump() for step, entry in record.steps.items()}
            if record.key == self.key
            else {}
        )


def scalar(value: float) -> Array:
    """Return a float64 scalar array, the form numbers have in a step."""
    return np.array(value, dtype=np.float64)
