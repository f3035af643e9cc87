"""Which graphs were exported, from which artifact, and are they still those? Answering needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from gacq_deploy.engines.catalogue import CANONICAL, CPU, FLOAT
from gacq_deploy.errors import ArtifactError, quoted
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.storage.digests import digest_file
from gacq_deploy.storage.documents import read_json, shown
from gacq_deploy.storage.records import ListedFile, OpenRecord, Record, as_record, verify_listed
from gacq_deploy.storage.sealed import require_current, unseal, write_sealed

_SCHEMA = "gacq-deploy/export/1"
EXPORT_FILES = frozenset(name for graph in (FLOAT, CANONICAL, CPU) for name in (graph, f"{graph}.data"))
"""Every file an export may write beside its manifest."""


class SubjectRecord(OpenRecord):
    """What a report is about, as far as :func:`why_changed` compares it."""

    artifact_sha256: str | None = None
    files: dict[str, str] = Field(default_factory=dict)


class LintCounts(Record):
    """What the lint found in one graph for one engine."""

    file: str
    target: str
    error: int
    warn: int
    info: int


class ExportRecord(Record):
    """What ``onnx/manifest.json`` says."""

    schema_: Literal["gacq-deploy/export/1"] = Field(default="gacq-deploy/export/1", alias="schema")
    artifact_sha256: str
    """Digest of the artifact's manifest."""
    recipe_sha256: str
    """Digest of the resolved recipe."""
    settings_sha256: str
    """Digest of the recipe's export section, but for which graphs to write."""
    opset: int
    files: dict[str, ListedFile]
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

    def bytes_of(self, name: str) -> int:
        """Return the size of a graph, with the weights beside it."""
        weights = self.files.get(f"{name}.data")
        return self.files[name].bytes + (weights.bytes if weights else 0)

    def why_stale(self, directory: RunDirectory) -> str | None:
        """Return why the graphs are not those of the run's artifact; None: they are."""
        return why_changed(directory, {"artifact_sha256": self.artifact_sha256})

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
    verify_listed(
        directory.onnx_manifest,
        record.files,
        known=EXPORT_FILES,
        needed=FLOAT,
        what="Exported file",
        hint=hint,
    )
    require_current(directory.onnx_manifest, record.why_stale(directory), hint)
    return record


def why_changed(directory: RunDirectory, subject: Mapping[str, Any]) -> str | None:
    """Return what of a report's subject is not what lies in the run now; None: all is.

    Args:
        directory: the run.
        subject: ``artifact_sha256``, and ``files``: exported file -> sha256; what is not stated is not compared.

    Raises:
        ArtifactError: the artifact states no digest.
    """
    made_from = subject.get("artifact_sha256")
    if made_from is not None and made_from != (now := artifact_digest(directory)):
        return f"it is about artifact {shown(str(made_from)[:12])}, {directory.artifact} now is {now[:12]}"
    for name, sha256 in subject.get("files", {}).items():
        path = directory.onnx / Path(name).name
        if not path.is_file() or digest_file(path) != sha256:
            return f"{path} is not the file that it is about"
    return None


def artifact_digest(directory: RunDirectory) -> str:
    """Return the digest that the artifact's manifest states, without loading the artifact.

    Raises:
        ArtifactError: there is none.
    """
    hint = (
        f"Run `gacq-deploy calibrate -r {quoted(directory.recipe_path)} -o {quoted(directory.root)}` first."
    )
    manifest = read_json(directory.artifact / "manifest.json", what="Artifact manifest", hint=hint)
    digest = manifest.get("digest")
    if not isinstance(digest, str):
        raise ArtifactError(f"Artifact manifest in {directory.artifact} states no digest.", hint)
    return digest


def read_record(directory: RunDirectory) -> ExportRecord:
    """Return what the manifest says, without a look at the graphs or at the artifact.

    Raises:
        ArtifactError: missing, altered, of another version, or without the float graph.
    """
    path, hint = directory.onnx_manifest, _hint(directory)
    document = read_json(path, what="Export manifest", hint=hint)
    if document.get("schema") != _SCHEMA:
        raise ArtifactError(f"{path} is not an export manifest of this version ({_SCHEMA}).", hint)
    body = unseal(document, path, what="Export manifest", hint=hint)
    record = as_record(ExportRecord, body, where=f"Export manifest {path}", hint=hint)
    if FLOAT not in record.files:
        raise ArtifactError(f"{path} does not list {FLOAT}, so nothing vouches for it.", hint)
    if empty := [name for name in record.graphs if record.files[name].bytes == 0]:
        raise ArtifactError(f"{path} lists {empty[0]} with no byte.", hint)
    return record


def _hint(directory: RunDirectory) -> str:
    return f"Run `gacq-deploy export --onnx {quoted(directory.root)}`."
