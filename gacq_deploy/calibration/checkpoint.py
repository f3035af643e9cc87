"""What is already learned? Finished blocks on disk, valid for exactly one set of inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gacq_deploy.errors import RESTORE, ArtifactError
from gacq_deploy.spec import Array
from gacq_deploy.storage.digests import describe_file, verify_file
from gacq_deploy.storage.files import load_arrays, read_json, save_arrays, write_json

_SCHEMA = "gacq-deploy/work/1"


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
        path = self.folder / str(entry["file"])
        verify_file(path, entry, what=f"Finished step '{step}'", hint=RESTORE)
        return load_arrays(path, what=f"Finished step '{step}'", hint=RESTORE)

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
        document = read_json(self._path, what="Calibration checkpoint", hint=RESTORE)
        if not isinstance(document, dict) or document.get("schema") != _SCHEMA:
            raise ArtifactError(f"{self._path} is not a calibration checkpoint.", RESTORE)
        return dict(document["steps"]) if document.get("key") == self.key else {}


def scalar(value: float) -> Array:
    """Return a float64 scalar array, the form numbers have in a step."""
    return np.array(value, dtype=np.float64)
