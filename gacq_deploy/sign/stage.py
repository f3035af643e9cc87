"""How is a run signed? Only when everything in it is what was written, and over all that production reads."""

from __future__ import annotations

from pathlib import Path

from gacq_deploy.errors import ArtifactError, UsageError, quoted
from gacq_deploy.inspection.commands import command_for
from gacq_deploy.inspection.verify import verify_records
from gacq_deploy.origin.check import signing_key
from gacq_deploy.origin.signature import RunSignature, production_files, require_signed_files
from gacq_deploy.run_directory import AnyRun, RunDirectory, as_run
from gacq_deploy.storage.digests import describe_file
from gacq_deploy.storage.records import ListedFile

_SIGNED = ("recipe", "artifact", "graphs", "engines", "parity")
"""Links of the chain that production reads."""


def sign_run(directory: AnyRun, key: Path | str) -> RunSignature:
    """Write ``signature.json``: every file that is read to run the engines, signed with a private ed25519 key.

    Args:
        directory: the run; what is written in it later that production reads (`parity`, `build-trt`) has to be signed
            again.
        key: PEM file of the key (PKCS #8, not encrypted), which only its owner may read; outside the run.

    Returns:
        What was written.

    Raises:
        UsageError: the key cannot be read as such, may be read by others, or lies in the run.
        ArtifactError: a file of the run is stale, altered or a link, or no graph was exported yet.
        BackendUnavailable: `cryptography` is missing.
        ResourceError: the disk is full, or another process holds the run.
    """
    run, path = as_run(directory), Path(key)
    run.require()
    signer = signing_key(path)
    if run.holds(path):
        raise UsageError(
            f"The key {path} lies in the run that it signs: whoever gets the run gets the key.",
            f"Move it out of {run.root}, and make another if the run was given away.",
        )
    with run.writing():
        _require_intact(run)
        files = {name: ListedFile(**describe_file(p)) for name, p in production_files(run).items()}
        unsigned = RunSignature(key=signer.public, files=files)
        # what would be refused later is refused now: links, and what changes meanwhile
        require_signed_files(run, unsigned)
        signature = unsigned.model_copy(update={"signature": signer.sign(unsigned.message)})
        signature.save(run.signature_json)
    return signature


def _require_intact(run: RunDirectory) -> None:
    links = verify_records(run).links
    broken = next((link for link in links if link.name in _SIGNED and link.status == "fail"), None)
    if broken is not None:
        raise ArtifactError(f"{run.root} is not signed: {broken.name}: {broken.detail}", broken.hint)
    if not run.onnx_manifest.is_file():
        raise ArtifactError(
            f"{run.root} is not signed: no graph was exported, so nothing in it can run.",
            f"Run `{command_for('graphs', run)}`, and `gacq-deploy parity {quoted(run.root)}`.",
        )
