"""Keys as `openssl genpkey` and `openssl pkey -pubout` write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)


class KeyFiles(NamedTuple):
    """A private key, and a file of public ones that holds its other half."""

    key: Path
    trusted: Path


def write_keys(folder: Path, name: str = "key", key: Any = None) -> KeyFiles:
    """Write a new ed25519 key, or any other that is given."""
    key = Ed25519PrivateKey.generate() if key is None else key
    files = KeyFiles(folder / f"{name}.pem", folder / f"{name}.trusted.pem")
    files.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    files.key.chmod(0o600)
    files.trusted.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return files
