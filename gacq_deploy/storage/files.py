"""How does a file reach the disk whole, and how do we know it still is what was written?"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as safetensors_load
from safetensors.numpy import save as safetensors_save

from gacq_deploy.errors import ArtifactError, GacqError, ResourceError, UsageError

TEMP_PREFIX = ".gacq-tmp-"
LOCK_NAME = ".gacq-lock"
_OLD_PREFIX = f"{TEMP_PREFIX}old-"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
Array = NDArray[Any]


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on a clean exit it is fsynced and renamed over ``path``.

    Raises:
        ResourceError: the disk is full.
        UsageError: the folder cannot be written.
    """
    temp = path.parent / f"{TEMP_PREFIX}{os.getpid()}-{path.name}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temp
        with temp.open("rb") as file:
            os.fsync(file.fileno())
        temp.replace(path)
        _fsync_directory(path.parent)
    except OSError as error:
        raise _disk_error(error, path) from error
    finally:
        if path.parent.is_dir():
            temp.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a new temporary folder beside ``path``; on a clean exit it takes the place of ``path``.

    Raises:
        ResourceError: the disk is full.
        UsageError: the folder cannot be written.
    """
    temp = path.parent / f"{TEMP_PREFIX}{os.getpid()}-{path.name}"
    old = path.parent / f"{_OLD_PREFIX}{path.name}"
    try:
        temp.mkdir(parents=True)
        yield temp
        _fsync_directory(temp)
        if path.exists():
            path.rename(old)
        temp.rename(path)
        _fsync_directory(path.parent)
    except OSError as error:
        raise _disk_error(error, path) from error
    finally:
        shutil.rmtree(temp, ignore_errors=True)
        _settle(old, path)


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` so that ``path`` holds either the old or the new content, never half of it."""
    with atomic_path(path) as temp:
        temp.write_bytes(data)


def canonical_json(document: Any) -> bytes:
    """Return UTF-8 JSON with sorted keys, two spaces and a final newline: equal values, equal bytes."""
    return (
        json.dumps(document, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    ).encode()


def write_json(path: Path, document: Any) -> None:
    """Write :func:`canonical_json` atomically."""
    write_bytes(path, canonical_json(document))


def read_json(path: Path, *, what: str, hint: str) -> Any:
    """Read a JSON object; NaN and Infinity, which are not JSON, are refused.

    Raises:
        ArtifactError: missing or not a JSON object; ``what`` names the file's role, ``hint`` the remedy.
    """
    try:
        document = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
    except FileNotFoundError:
        raise ArtifactError(f"{what} is missing: {path}", hint) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{what} {path} is not readable JSON: {error}", hint) from error
    if not isinstance(document, dict):
        raise ArtifactError(
            f"{what} {path} is not readable JSON: a {type(document).__name__}, no object.", hint
        )
    return document


def _refuse_constant(name: str) -> float:
    raise ValueError(f"it holds {name}")


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
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def digest_file(path: Path) -> str:
    """Return the sha256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
        raise ArtifactError(
            f"{what} {path} was altered: sha256 {actual[:12]}, the manifest says {str(entry.get('sha256'))[:12]}",
            hint,
        )


def save_arrays(path: Path, arrays: Mapping[str, Array], *, schema: str) -> None:
    """Write a safetensors file atomically, with one metadata entry (``schema``).

    Two traps of safetensors 0.8 are handled: non-contiguous arrays would be written with other values, and more
    than one metadata entry makes the bytes differ from run to run.
    """
    contiguous = {name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)}
    # ascontiguousarray turns rank 0 into rank 1
    shaped = {name: a.reshape(np.shape(arrays[name])) for name, a in contiguous.items()}
    write_bytes(path, safetensors_save(shaped, metadata={"schema": schema}))


def map_scratch(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """Return a writable array in a file of its own, whose space is reserved: a full disk shows here.

    Without the reservation the first write to a page that finds no space kills the process (SIGBUS).

    Raises:
        ResourceError: the disk is full.
    """
    try:
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, int(np.prod(shape)) * dtype.itemsize)
        return np.memmap(path, dtype, "r+", shape=shape)
    except OSError as error:
        raise _disk_error(error, path) from error


def load_arrays(path: Path, *, what: str, hint: str) -> dict[str, Array]:
    """Read a safetensors file.

    Raises:
        ArtifactError: missing, truncated or malformed.
    """
    try:
        return dict(safetensors_load(path.read_bytes()))
    except FileNotFoundError:
        raise ArtifactError(f"{what} is missing: {path}", hint) from None
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise ArtifactError(f"{what} {path} is not a whole safetensors file: {error}", hint) from error


@contextmanager
def lock_directory(path: Path) -> Iterator[None]:
    """Hold ``path`` for this process; stale temporary files of dead processes are removed.

    Raises:
        ResourceError: another live process holds it.
        UsageError: it cannot be created or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        handle = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise _disk_error(error, path) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(handle, 32, 0).decode(errors="replace").strip() or "unknown"
            raise ResourceError(
                f"{path} is in use by process {holder}.", "Wait for it to end, or choose another directory."
            ) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        _clean_up(path)
        yield
    finally:
        os.close(handle)


def _settle(old: Path, path: Path) -> None:
    """End a swap of folders that may have stopped between its two renames: the new folder, or else the old one."""
    if not old.exists():
        return
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
    else:
        old.rename(path)


def _clean_up(root: Path) -> None:
    """Remove what dead processes left in ``root`` and below; other runs and linked folders are not touched."""
    for folder in _own_folders(root):
        for stale in list(folder.glob(f"{TEMP_PREFIX}*")):
            if stale.name.startswith(_OLD_PREFIX):
                _settle(stale, folder / stale.name.removeprefix(_OLD_PREFIX))
            elif _is_alive(stale.name.removeprefix(TEMP_PREFIX).partition("-")[0]):
                continue
            elif stale.is_dir():
                shutil.rmtree(stale, ignore_errors=True)
            else:
                stale.unlink(missing_ok=True)


def _own_folders(root: Path) -> Iterator[Path]:
    yield root
    for folder in list(root.iterdir()):
        if folder.is_symlink() or not folder.is_dir() or folder.name.startswith(TEMP_PREFIX):
            continue
        if not (folder / LOCK_NAME).exists():
            yield from _own_folders(folder)


def _is_alive(pid: str) -> bool:
    """Return whether the process that a temporary file names is another one, and runs."""
    if not pid.isdigit() or int(pid) == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _fsync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _disk_error(error: OSError, path: Path) -> GacqError:
    if error.errno in _FULL:
        return ResourceError(
            f"No space left while writing {path} ({error.strerror}). Earlier files are untouched.",
            "Free disk space, then run the same command again: it resumes.",
        )
    return UsageError(
        f"Cannot write {path}: {error.strerror or error}.",
        "Choose a writable directory with -o, or mend its permissions.",
    )
