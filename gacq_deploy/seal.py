"""Is this JSON document what was written? A report states its own digest, and is not read without it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gacq_deploy.errors import ArtifactError
from gacq_deploy.storage import digest_json, read_json, write_json


def write_sealed(path: Path, document: Mapping[str, Any]) -> None:
    """Write ``document`` and its digest under the key ``digest``, atomically."""
    write_json(path, {**document, "digest": digest_json(document)})


def read_sealed(path: Path, *, what: str, hint: str) -> dict[str, Any]:
    """Return what :func:`write_sealed` wrote, without the digest.

    Args:
        path: the file.
        what: its role, for the message.
        hint: the remedy.

    Raises:
        ArtifactError: missing, not a JSON object, without digest, or altered since it was written.
    """
    document = read_json(path, what=what, hint=hint)
    if not isinstance(document, dict) or not isinstance(document.get("digest"), str):
        raise ArtifactError(f"{what} {path} states no digest, so nothing vouches for it.", hint)
    body = {key: value for key, value in document.items() if key != "digest"}
    actual = digest_json(body)
    if actual != document["digest"]:
        raise ArtifactError(
            f"{what} {path} was altered: its digest is {actual[:12]}, it states {document['digest'][:12]}.",
            hint,
        )
    return body
