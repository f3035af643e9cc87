"""How does a file reach the disk whole, and how do we know it still is what was written?"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as safetensors_load
from safetensors.numpy import save as safetensors_save

from gacq_deploy.errors import ArtifactError, GacqError, ResourceError, UsageError, quoted
from gacq_deploy.spec import Array
from gacq_deploy.storage.digests import canonical_json

TEMP_PREFIX = ".gacq-tmp-"
"""Of what is being written. The writer's process id follows, by which the clean-up knows what dead processes left."""
OLD_PREFIX = f"{TEMP_PREFIX}old-"
"""Of a folder that is about to be replaced."""
_LONGEST_NAME = 255
"""Bytes of a file's name on Linux."""
# a quota and a limit on the size of files are a full disk to the user
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def require_folder_for(path: Path) -> None:
    """Refuse a path that was asked for where its folder is not there: a mistyped one is not made in silence.

    Raises:
        UsageError: there is no such folder; the message names the first one that is missing.
    """
    folder = path.absolute().parent
    if not folder.is_dir():
        missing = next(f for f in reversed((folder, *folder.parents)) if not f.is_dir())
        if missing.exists():
            raise UsageError(
                f"Cannot write {path}: {missing} is a file, not a folder.", "Choose another place."
            )
        raise UsageError(
            f"Cannot write {path}: there is no folder {missing}.",
            f"Choose another place, or make it: mkdir -p {quoted(folder)}",
        )


def _temp_of(path: Path) -> Path:
    """Return the temporary name beside ``path``, which has its suffix; a name too long for that is shortened."""
    name = f"{TEMP_PREFIX}{os.getpid()}-{path.name}"
    if len(os.fsencode(name)) > _LONGEST_NAME:
        digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
        name = f"{TEMP_PREFIX}{os.getpid()}-{digest}{path.suffix}"
    return path.with_name(name)


def _make_new(path: Path) -> None:
    """Make an empty file, never through a link: one that lies there, of whomever, is removed and not followed."""
    path.unlink(missing_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o666))


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on a clean exit it is fsynced and renamed over ``path``.

    Raises:
        ResourceError: the disk is full.
        UsageError: the folder cannot be written.
    """
    temp = _temp_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _make_new(temp)
        yield temp
        # content before name: after a loss of power the name may not stand for a file without content
        with temp.open("rb") as file:
            os.fsync(file.fileno())
        temp.replace(path)
        _fsync_directory(path.parent)
    except OSError as error:
        raise disk_error(error, path) from error
    finally:
        # where the folder could not be made there is nothing to remove, and the error on its way says why
        if path.parent.is_dir():
            temp.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a new temporary folder beside ``path``; on a clean exit it takes the place of ``path``.

    Raises:
        ResourceError: the disk is full.
        UsageError: the folder cannot be written.
    """
    temp = _temp_of(path)
    old = path.parent / f"{OLD_PREFIX}{path.name}"
    try:
        temp.mkdir(parents=True)
        yield temp
        _fsync_directory(temp)
        # a folder with content cannot be renamed over; what a kill between the two leaves, settle() ends
        if path.exists():
            path.rename(old)
        temp.rename(path)
        _fsync_directory(path.parent)
    except OSError as error:
        raise disk_error(error, path) from error
    finally:
        shutil.rmtree(temp, ignore_errors=True)
        settle(old, path)


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` so that ``path`` holds either the old or the new content, never half of it."""
    with atomic_path(path) as temp:
        temp.write_bytes(data)


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
        raise disk_error(error, path) from error


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


def settle(old: Path, path: Path) -> None:
    """End a swap of folders that may have stopped between its two renames: the new folder, or else the old one."""
    if not old.exists():
        return
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
    else:
        old.rename(path)


def _fsync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def disk_error(error: OSError, path: Path) -> GacqError:
    """Return what a failure to write ``path`` means: no disk, no memory, or a place that is not writable."""
    if error.errno in _FULL:
        return ResourceError(
            f"No space left while writing {path} ({error.strerror}). Earlier files are untouched.",
            "Free disk space, then run the same command again: it resumes.",
        )
    if error.errno == errno.ENOMEM:
        return ResourceError(
            f"Out of memory while writing {path}: the system gave no more. Earlier files are untouched.",
            "Lower calibration.memory_mb with --set, or --batch; `--dry-run` estimates what is needed.",
        )
    return UsageError(
        f"Cannot write {path}: {error.strerror or error}.",
        "Choose a writable directory with -o, or mend its permissions.",
    )
