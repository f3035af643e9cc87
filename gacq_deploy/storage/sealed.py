"""Is this JSON document what was written? It states its own digest, and is not read without it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from gacq_deploy.errors import ArtifactError
from gacq_deploy.storage.digests import digest_json
from gacq_deploy.storage.documents import read_json, shown
from gacq_deploy.storage.files import write_json


def require_current(path: Path, why_stale: str | None, hint: str) -> None:
    """Refuse a record that is about something else than what lies beside it now.

    Args:
        path: of the record.
        why_stale: what the record itself says; None: it is current.
        hint: how to make it again.

    Raises:
        ArtifactError: it is stale.
    """
    if why_stale is not None:
        raise ArtifactError(f"{path} is stale: {why_stale}.", hint)


def write_sealed(path: Path, document: Mapping[str, Any], beside: Mapping[str, Any] | None = None) -> str:
    """Write ``document`` and its digest under the key ``digest``, atomically; return the digest.

    It does not cover the keys of ``beside``, which are written too.
    """
    digest = digest_json(document)
    write_json(path, {**document, "digest": digest, **(beside or {})})
    return digest


def read_sealed(path: Path, *, what: str, hint: str) -> dict[str, Any]:
    """Return what :func:`write_sealed` wrote, without the digest.

    Args:
        path: the file.
        what: its role, for the message.
        hint: the remedy.

    Raises:
        ArtifactError: missing, not a JSON object, without digest, or altered since it was written.
    """
    return unseal(read_json(path, what=what, hint=hint), path, what=what, hint=hint)


def unseal(
    document: Any, path: Path, *, what: str, hint: str, beside: Collection[str] = ()
) -> dict[str, Any]:
    """Return what :func:`read_sealed` does of a document that was read already, without the keys of ``beside``.

    Raises:
        ArtifactError: as :func:`read_sealed`.
    """
    if not isinstance(document, dict) or not isinstance(document.get("digest"), str):
        raise ArtifactError(f"{what} {path} states no digest, so nothing vouches for it.", hint)
    body = {key: value for key, value in document.items() if key != "digest" and key not in beside}
    actual = digest_json(body)
    if actual != document["digest"]:
        raise ArtifactError(
            f"{what} {path} was altered: its digest is {actual[:12]}, it states {shown(document['digest'][:12])}.",
            hint,
        )
    return body
