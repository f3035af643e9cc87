"""Which keys does a file hold, and did one of them sign this? The one module that knows `cryptography`."""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from gacq_deploy.errors import UsageError, quoted
from gacq_deploy.storage.documents import Malformed, read_bytes

_LARGEST = 2**16
"""Bytes of a file of keys."""
_SHOWN = 16
"""Digits of a key that a message shows."""
_BEGIN = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,40})-----")
_PRIVATE, _PUBLIC, _ENCRYPTED = "PRIVATE KEY", "PUBLIC KEY", "ENCRYPTED PRIVATE KEY"
_MAKE = "Make a key: openssl genpkey -algorithm ed25519 -out key.pem"
_HALVE = "The public half of a key: openssl pkey -in key.pem -pubout -out trusted.pem"


@dataclass(frozen=True)
class SigningKey:
    """A private ed25519 key."""

    _key: Ed25519PrivateKey = field(repr=False)

    @property
    def public(self) -> str:
        """Its public half: 64 hexadecimal digits."""
        return self._key.public_key().public_bytes_raw().hex()

    def sign(self, data: bytes) -> str:
        """Return the signature of ``data``: 128 hexadecimal digits, the same each time."""
        return self._key.sign(data).hex()


@dataclass(frozen=True)
class TrustedKeys:
    """The public ed25519 keys of a file, each as 64 hexadecimal digits."""

    path: Path
    keys: frozenset[str]


def read_signing_key(path: Path) -> SigningKey:
    """Read a private key: one ed25519 key, PEM (PKCS #8), not encrypted.

    Raises:
        UsageError: the file is missing, may be read by others than its owner, is no PEM, or holds another kind of key.
    """
    data, mode = _read(path, "key")
    blocks = _blocks(path, data)
    if len(blocks) != 1:
        raise UsageError(f"{path} holds {len(blocks)} keys.", "Name a file that holds the one to sign with.")
    label, block = blocks[0]
    if label == _ENCRYPTED:
        raise UsageError(
            f"The key in {path} is encrypted.",
            f"Decrypt it on the way: --key <(openssl pkey -in {quoted(path)})",
        )
    if label != _PRIVATE:
        raise UsageError(f"{path} holds a {label}, no {_PRIVATE}.", _MAKE)
    if mode & 0o077:
        raise UsageError(
            f"The key {path} may be read by others than its owner (mode {mode:04o}).",
            f"Take that from them: chmod 600 {quoted(path)}",
        )
    try:
        key = load_pem_private_key(block, password=None)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(f"The key in {path} cannot be read: {_first_line(error)}", _MAKE) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"The key in {path} is no ed25519 key.", _MAKE)
    return SigningKey(key)


def read_trusted_keys(path: Path) -> TrustedKeys:
    """Read public keys: one or more ed25519 keys, PEM, one after the other; text between them means nothing.

    Raises:
        UsageError: the file is missing, holds no PEM, something beside public keys, or another kind of key.
    """
    data, _ = _read(path, "trusted keys")
    return TrustedKeys(path, frozenset(_public(path, *block) for block in _blocks(path, data)))


def is_signed_by(public: str, signature: str, data: bytes) -> bool:
    """Tell whether a key signed ``data``.

    Args:
        public: of the key, 64 hexadecimal digits.
        signature: 128 hexadecimal digits.
        data: what was signed.
    """
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(bytes.fromhex(signature), data)
    except InvalidSignature:
        return False
    return True


def shown_key(public: str) -> str:
    """Return the first digits of a key, for messages."""
    return public[:_SHOWN]


def _public(path: Path, label: str, block: bytes) -> str:
    if label != _PUBLIC:
        raise UsageError(f"{path} holds a {label}; whoever checks is given a {_PUBLIC} only.", _HALVE)
    try:
        key = load_pem_public_key(block)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(f"A key in {path} cannot be read: {_first_line(error)}", _HALVE) from error
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(f"{path} holds a key that is no ed25519 key.", _HALVE)
    return key.public_bytes_raw().hex()


def _blocks(path: Path, data: bytes) -> list[tuple[str, bytes]]:
    """Return label and text of every PEM block."""
    found = []
    for begin in _BEGIN.finditer(data):
        label, last = begin[1].decode("ascii"), b"-----END %s-----" % begin[1]
        end = data.find(last, begin.end())
        if end < 0:
            raise UsageError(f"The {label} in {path} has no end: the file is cut off.", "Copy it again.")
        found.append((label, data[begin.start() : end + len(last)]))
    if not found:
        raise UsageError(f"{path} holds no key: it is no PEM file.", _MAKE)
    return found


def _read(path: Path, what: str) -> tuple[bytes, int]:
    """Return a file's bytes, or those of a pipe, and the bits of its mode."""
    try:
        data, mode = read_bytes(path, pipes=True), stat.S_IMODE(path.stat().st_mode)
    except (OSError, Malformed) as error:
        said = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"The file of the {what} {path} cannot be read: {said}.", _MAKE) from error
    if len(data) > _LARGEST:
        raise UsageError(
            f"{path} has {len(data)} bytes; a file of keys has {_LARGEST} at most.", "Name a PEM file."
        )
    return data, mode


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].partition(" See ")[0]
