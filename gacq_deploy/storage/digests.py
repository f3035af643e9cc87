"""What identifies a file, an array or a document, and is it still that?"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from json.encoder import encode_basestring
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gacq_deploy.errors import ArtifactError
from gacq_deploy.spec import Array
from gacq_deploy.storage.documents import shown

_PIECE_BYTES = 4 << 20
_other = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
"""Of what no faster way is known for."""


def canonical_json(document: Any) -> bytes:
    """Return UTF-8 JSON with sorted keys, two spaces and a final newline: equal values, equal bytes."""
    parts: list[str] = []
    _write_canonical("", document, "\n", parts)
    return "".join((*parts, "\n")).encode()


def _write_canonical(before: str, value: Any, line: str, parts: list[str]) -> None:
    """Append a value's text.

    json does the same with a generator for each container, and hands every part through all that lie around it.

    Args:
        before: text that stands before it.
        value: plain data.
        line: what begins a line where the value stands: a line feed and the spaces before it.
        parts: of the text so far.
    """
    inner = f"{line}  "
    if isinstance(value, dict) and value:
        start = f"{before}{{{inner}"
        for key in sorted(value):
            _write_canonical(f"{start}{_key(key)}: ", value[key], inner, parts)
            start = f",{inner}"
        parts.append(f"{line}}}")
    elif isinstance(value, list | tuple) and value:
        start = f"{before}[{inner}"
        for one in value:
            _write_canonical(start, one, inner, parts)
            start = f",{inner}"
        parts.append(f"{line}]")
    else:
        parts.append(f"{before}{_encoded(value)}")


def _encoded(value: Any) -> str:
    """Return the text of a value that holds no other."""
    if type(value) is str:
        return encode_basestring(value)
    return repr(value) if type(value) is int else _other(value)


def _key(key: Any) -> str:
    """Return a key as json writes it: numbers and their like as text."""
    if isinstance(key, str):
        return _encoded(key)
    if key is None or isinstance(key, int | float):
        return f'"{_encoded(key)}"'
    raise TypeError(f"{key!r} is no key of a JSON object")


def digest_bytes(data: bytes) -> str:
    """Return the sha256 of ``data`` in hex."""
    return hashlib.sha256(data).hexdigest()


def digest_json(document: Any) -> str:
    """Return the sha256 of the canonical JSON of ``document``."""
    return digest_bytes(canonical_json(document))


def digest_array(array: Array) -> str:
    """Return the sha256 of an array's dtype, shape and row-major bytes."""
    head = f"{array.dtype.str}{list(array.shape)}".encode()
    digest = hashlib.sha256(head)
    for part in _in_pieces(array):
        digest.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _in_pieces(array: Array) -> Iterator[Array]:
    """Yield an array in pieces where it lies otherwise in memory than it is hashed: no copy is made of all of it."""
    if array.flags.c_contiguous or array.size == 0:
        yield array
        return
    rows = max(_PIECE_BYTES * len(array) // array.nbytes, 1)
    yield from (array[first : first + rows] for first in range(0, len(array), rows))


def digest_file(path: Path) -> str:
    """Return the sha256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def held(path: Path, sha256: str, *, what: str, hint: str) -> Iterator[BinaryIO]:
    """Yield an open file once it proved to be that file, and see that it stayed so.

    For a library that opens it by its path, who may write in the folder can still put another there and the first back
    in between.

    Raises:
        ArtifactError: it cannot be read, is not of that digest, or another lies there in the end.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise ArtifactError(f"{what} {path} cannot be read: {error.strerror}.", hint) from error
    with file:
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            raise ArtifactError(f"{what} {path} was altered: its sha256 is not the recorded one.", hint)
        before = _identity(os.fstat(file.fileno()))
        file.seek(0)
        yield file
        if not path.exists() or _identity(path.stat()) != before:
            raise ArtifactError(f"{what} {path} was replaced or altered while it was read.", hint)


def _identity(stat: os.stat_result) -> tuple[int, ...]:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def describe_file(path: Path) -> dict[str, Any]:
    """Return the manifest entry of a file: its sha256 and size in bytes."""
    return {"sha256": digest_file(path), "bytes": path.stat().st_size}


def verify_file(path: Path, entry: Mapping[str, Any], *, what: str, hint: str) -> None:
    """Check a file against its manifest entry before anything parses it.

    Raises:
        ArtifactError: missing, not a regular single-link file, of another size, or altered.
    """
    if path.is_symlink() or not path.is_file():
        raise ArtifactError(f"{what} is missing or not a regular file: {path}", hint)
    stat = path.stat()
    if stat.st_nlink != 1:
        raise ArtifactError(
            f"{what} {path} has {stat.st_nlink} hard links; only a private copy is trusted", hint
        )
    if stat.st_size != entry.get("bytes"):
        raise ArtifactError(
            f"{what} {path} has {stat.st_size} bytes, the manifest says {entry.get('bytes')}: truncated or altered",
            hint,
        )
    actual = digest_file(path)
    if actual != entry.get("sha256"):
        stated = shown(str(entry.get("sha256"))[:12])
        raise ArtifactError(
            f"{what} {path} was altered: sha256 {actual[:12]}, the manifest says {stated}", hint
        )
