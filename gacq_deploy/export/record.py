"""Which graphs were exported, from which artifact, and are they still those? Answering needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gacq_deploy.engines.catalogue import CANONICAL, CPU, FLOAT
from gacq_deploy.errors import ArtifactError
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.storage.digests import verify_file
from gacq_deploy.storage.files import read_json
from gacq_deploy.storage.sealed import unseal, write_sealed

SCHEMA = "gacq-deploy/export/1"
FILES = frozenset(name for graph in (FLOAT, CANONICAL, CPU) for name in (graph, f"{graph}.data"))
"""Every file an export may write beside its manifest."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class ExportedFile(_Record):
    """One file of the export."""

    sha256: str
    bytes: int


class LintCounts(_Record):
    """What the lint found in one graph for one engine."""

    file: str
    target: str
    error: int
    warn: int
    info: int


class ExportRecord(_Record):
    """What ``onnx/manifest.json`` says."""

    schema_: Literal["gacq-deploy/export/1"] = Field(default="gacq-deploy/export/1", alias="schema")
    artifact_sha256: str
    """Digest of the artifact's manifest."""
    recipe_sha256: str
    """Digest of the resolved recipe."""
    settings_sha256: str
    """Digest of the recipe's export section, but for which graphs to write."""
    opset: int
    files: dict[str, ExportedFile]
    """File name in ``onnx/`` -> digest and size, weight files included."""
    quantized_sites: dict[str, int]
    """Q/DQ graph -> planned sites that are quantized in it: all of them, or there is no record."""
    lint: tuple[LintCounts, ...]
    self_check: dict[str, float]
    """``float.onnx`` -> relative error to torch; Q/DQ graph -> relative distance from ``float.onnx``."""

    @property
    def graphs(self) -> tuple[str, ...]:
        """File names of the graphs, float first."""
        return tuple(name for name in (FLOAT, CANONICAL, CPU) if name in self.files)

    def save(self, path: Path) -> None:
        """Write the manifest with its own digest."""
        write_sealed(path, self.model_dump(mode="json", by_alias=True))


def load_export(directory: RunDirectory) -> ExportRecord:
    """Return the record of the exported graphs, every file checked against it before anything parses one.

    Raises:
        ArtifactError: missing, altered or truncated, or made from another artifact than the directory holds.
    """
    hint = _hint(directory)
    record = read_record(directory)
    for name, entry in record.files.items():
        if name not in FILES:
            raise ArtifactError(
                f"Export manifest {directory.onnx_manifest} names a foreign file '{name}'.", hint
            )
        verify_file(directory.onnx / name, entry.model_dump(), what="Exported file", hint=hint)
    current = artifact_digest(directory)
    if record.artifact_sha256 != current:
        raise ArtifactError(
            f"The graphs in {directory.onnx} are stale: they were made from artifact "
            f"{record.artifact_sha256[:12]}, {directory.artifact} now is {current[:12]}.",
            hint,
        )
    return record


def artifact_digest(directory: RunDirectory) -> str:
    """Return the digest that the artifact's manifest states, without loading the artifact.

    Raises:
        ArtifactError: there is none.
    """
    hint = f"Run `gacq-deploy calibrate -r {directory.recipe_path} -o {directory.root}` first."
    manifest = read_json(directory.artifact / "manifest.json", what="Artifact manifest", hint=hint)
    digest = manifest.get("digest") if isinstance(manifest, dict) else None
    if not isinstance(digest, str):
        raise ArtifactError(f"Artifact manifest in {directory.artifact} states no digest.", hint)
    return digest


def read_record(directory: RunDirectory) -> ExportRecord:
    """Return what the manifest says, without a look at the graphs or at the artifact.

    Raises:
        ArtifactError: missing, altered, or of another version.
    """
    path, hint = directory.onnx_manifest, _hint(directory)
    document = read_json(path, what="Export manifest", hint=hint)
    if document.get("schema") != SCHEMA:
        raise ArtifactError(f"{path} is not an export manifest of this version ({SCHEMA}).", hint)
    body = unseal(document, path, what="Export manifest", hint=hint)
    try:
        return ExportRecord.model_validate(body)
    except ValidationError as error:
        raise ArtifactError(
            f"Export manifest {path} is inconsistent: {error.errors()[0]['msg']}.", hint
        ) from None


def _hint(directory: RunDirectory) -> str:
    return f"Run `gacq-deploy export --onnx {directory.root}`."
