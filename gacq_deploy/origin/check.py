"""Did somebody we trust sign this run, as it lies there? Asked before an engine is opened."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gacq_deploy.engines.attributes import import_attribute
from gacq_deploy.errors import ArtifactError, UsageError
from gacq_deploy.origin.signature import RunSignature, load_signature, require_signed_files, sign_hint
from gacq_deploy.run_directory import RunDirectory

if TYPE_CHECKING:
    from gacq_deploy.origin.keys import SigningKey, TrustedKeys

_KEYS = "gacq_deploy.origin.keys"
"""Imported by name and when needed: it takes `cryptography`, without which all that asks for no signature runs."""


def _of_keys(name: str) -> Any:
    return import_attribute(
        f"{_KEYS}:{name}", what="What signatures need", hint="pip install 'gacq-deploy[sign]'"
    )


def signing_key(path: Path) -> SigningKey:
    """Read a private key.

    Raises:
        UsageError: as :func:`gacq_deploy.origin.keys.read_signing_key`.
        BackendUnavailable: `cryptography` is missing.
    """
    read: Callable[[Path], SigningKey] = _of_keys("read_signing_key")
    return read(path)


def trusted_keys(path: Path, run: RunDirectory) -> TrustedKeys:
    """Read the public keys that ``run`` is to be judged by.

    Raises:
        UsageError: as :func:`gacq_deploy.origin.keys.read_trusted_keys`; or the file lies in the run itself.
        BackendUnavailable: `cryptography` is missing.
    """
    read: Callable[[Path], TrustedKeys] = _of_keys("read_trusted_keys")
    trusted = read(path)
    if run.holds(path):
        raise UsageError(
            f"The trusted keys {path} lie in the run that they are to judge: whoever made the run chose them.",
            "Name a file of your own, with keys that reached you another way.",
        )
    return trusted


def check_origin(run: RunDirectory, trusted: TrustedKeys) -> RunSignature:
    """Return the run's signature, after everything that it has to hold was checked.

    Raises:
        ArtifactError: the run is not signed, by none of these keys, or is not what was signed.
    """
    if not os.path.lexists(run.signature_json):
        raise ArtifactError(
            f"{run.root} is not signed ({run.signature_json} is missing), and only what {trusted.path} trusts may run.",
            sign_hint(run),
        )
    signature = load_signature(run)
    shown: Callable[[str], str] = _of_keys("shown_key")
    if signature.key not in trusted.keys:
        count = "the one key" if len(trusted.keys) == 1 else f"any of the {len(trusted.keys)} keys"
        raise ArtifactError(
            f"{run.root} is signed with key {shown(signature.key)}..., not with {count} in {trusted.path}.",
            f"If you trust whoever made it, add that key to {trusted.path}. {sign_hint(run)}",
        )
    is_signed_by: Callable[[str, str, bytes], bool] = _of_keys("is_signed_by")
    if not is_signed_by(signature.key, signature.signature, signature.message):
        raise ArtifactError(
            f"{run.signature_json} was not made with key {shown(signature.key)}..., which it names: forged or altered.",
            sign_hint(run),
        )
    require_signed_files(run, signature)
    return signature


def require_origin(run: RunDirectory, keys: Path | str | None) -> None:
    """Refuse a run that none of the keys in a file signed; without a file nothing is asked.

    Raises:
        UsageError: the file of keys cannot be read as such, or lies in the run.
        ArtifactError: as :func:`check_origin`.
        BackendUnavailable: `cryptography` is missing.
    """
    if keys is not None:
        check_origin(run, trusted_keys(Path(keys), run))
