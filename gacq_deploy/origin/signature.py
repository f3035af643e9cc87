"""What does the signature of a run say, and is all that it says of the files still true? Answering needs no key."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from gacq_deploy.artifact.artifact import ARTIFACT_FILES
from gacq_deploy.build_trt.manifest import ENGINE_FILES, MANIFEST, ORDER
from gacq_deploy.errors import ArtifactError, shell_command
from gacq_deploy.export.record import EXPORT_FILES
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.storage.digests import canonical_json, digest_file, verify_file
from gacq_deploy.storage.outputs import is_text
from gacq_deploy.storage.records import ListedFile, Record, load_sealed_record
from gacq_deploy.storage.sealed import write_sealed

_ARTIFACT = f"artifact/{MANIFEST}"


class RunSignature(Record):
    """What ``signature.json`` says."""

    schema_: Literal["gacq-deploy/signature/1"] = Field(default="gacq-deploy/signature/1", alias="schema")
    algorithm: Literal["ed25519"] = "ed25519"
    key: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """Public half of the key that signed."""
    files: dict[str, ListedFile]
    """Path in the run -> digest and size of all that production reads."""
    signature: Annotated[str, Field(pattern="^([0-9a-f]{128})?$")] = ""
    """Of everything above; empty until it is signed."""

    @property
    def message(self) -> bytes:
        """The bytes that are signed: canonical JSON of all but the signature itself."""
        return canonical_json(self.model_dump(mode="json", by_alias=True, exclude={"signature"}))

    def save(self, path: Path) -> None:
        """Write it with its own digest."""
        write_sealed(path, self.model_dump(mode="json", by_alias=True))


def load_signature(run: RunDirectory) -> RunSignature:
    """Return what the run's signature says; whether its key is to be trusted, and signed it, is not asked.

    Raises:
        ArtifactError: missing, altered, or of another version.
    """
    path, hint = run.signature_json, sign_hint(run)
    return load_sealed_record(RunSignature, path, what="Signature", hint=hint)


def sign_hint(run: RunDirectory) -> str:
    """Return what to do about a run whose signature does not hold."""
    sign = shell_command("sign", run.root, "--key", "key.pem")
    return f"Get the run again from whoever signed it; if what lies there is your own, sign it: {sign}"


def production_files(run: RunDirectory) -> dict[str, Path]:
    """Return path in the run -> path of every file that is read to run its engines.

    Raises:
        ArtifactError: a name holds bytes that are no UTF-8.
    """
    files = {path.relative_to(run.root).as_posix(): path for path in _production_files(run)}
    for name in files:
        if not is_text(name):
            raise ArtifactError(f"{run.root} holds {name!r}, a name that is no UTF-8.", "Rename it.")
    return files


def _production_files(run: RunDirectory) -> Iterator[Path]:
    engines = sorted(path.parent for path in run.engines.glob(f"*/{MANIFEST}"))
    named = (
        run.recipe_path,
        *(run.artifact / name for name in (MANIFEST, *ARTIFACT_FILES)),
        run.onnx_manifest,
        *(run.onnx / name for name in EXPORT_FILES),
        run.engines / ORDER,
        *(folder / name for folder in engines for name in (MANIFEST, *ENGINE_FILES)),
        run.parity_json,
    )
    # a link counts, wherever it leads: it is refused when its file is looked at
    yield from (path for path in named if os.path.lexists(path))
    yield from (path for path in run.model.rglob("*") if path.is_symlink() or not path.is_dir())


def require_signed_files(run: RunDirectory, signature: RunSignature) -> None:
    """Refuse a run whose files are not those that were signed: all of them, and no other.

    Raises:
        ArtifactError: one was altered, is missing, or came after the signature; or this signs another run.
    """
    hint = sign_hint(run)
    present = production_files(run)
    _require_same_artifact(run, signature, hint)
    if gone := sorted(signature.files.keys() - present.keys()):
        raise ArtifactError(f"Signed file is missing: {run.root / gone[0]}", hint)
    if added := sorted(present.keys() - signature.files.keys()):
        raise ArtifactError(
            f"{present[added[0]]} is not signed: {run.signature_json} does not name it.", hint
        )
    for name, path in present.items():
        verify_file(path, signature.files[name].model_dump(), what="Signed file", hint=hint)


def _require_same_artifact(run: RunDirectory, signature: RunSignature, hint: str) -> None:
    path = run.artifact / MANIFEST
    if not path.is_file():
        return
    signed, actual = signature.files.get(_ARTIFACT), digest_file(path)
    if signed is not None and signed.sha256 != actual:
        raise ArtifactError(
            f"{run.signature_json} signs another artifact ({signed.sha256[:12]}) than {path} ({actual[:12]}): it is "
            "the signature of another run, or the artifact was made again or altered.",
            hint,
        )
