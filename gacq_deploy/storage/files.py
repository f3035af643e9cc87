"""How does a file reach the disk whole, and how do we know it still is what was written?"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from gacq_deploy.errors import GacqError, UsageError
from gacq_deploy.spec import Array
from gacq_deploy.storage.digests import canonical_json
from gacq_deploy.storage.memory import lack_of_memory
from gacq_deploy.storage.outputs import require_name
from gacq_deploy.storage.room import FULL, no_space

TEMP_PREFIX = ".gacq-tmp-"
"""Of what is being written."""
OLD_PREFIX = f"{TEMP_PREFIX}old-"
"""Of a folder that is about to be replaced."""
LONGEST_NAME = 255
"""Bytes of a file's name on Linux."""


@contextmanager
def told(path: Path, needed: int | None = None) -> Iterator[None]:
    """Make what the system says of writing ``path``, of so many bytes, an error of ours."""
    try:
        yield
    except OSError as error:
        raise disk_error(error, path, needed) from error


@contextmanager
def _temporary(path: Path, *, folder: bool) -> Iterator[Path]:
    """Yield a new temporary file or folder beside ``path`` that has its suffix; what is left of it is removed.

    Its name is random, and it is locked as long as it is written: by that the clean-up knows what dead processes left,
    in whatever container their ids lived. It is never made through a link.
    """
    require_name(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temp = _temp_name(path)
    if folder:
        temp.mkdir()
        handle = os.open(temp, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    else:
        handle = os.open(temp, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW, 0o666)
    try:
        # a file system without locks holds no run that somebody else could clean up
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield temp
    finally:
        os.close(handle)
        remove(temp)


def _temp_name(path: Path) -> Path:
    """Return a random name beside ``path``; one too long for that is shortened."""
    start = f"{TEMP_PREFIX}{secrets.token_hex(8)}-"
    name = f"{start}{path.name}"
    if len(os.fsencode(name)) > LONGEST_NAME:
        name = f"{start}{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}{path.suffix}"
    return path.with_name(name)


def is_written(temp: Path) -> bool:
    """Tell whether a living process writes this temporary file or folder."""
    try:
        handle = os.open(temp, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False


def remove(path: Path) -> None:
    """Remove a file, a folder with all that it holds, or a link and not what it leads to; what cannot be, stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


@contextmanager
def atomic_path(path: Path, needed: int | None = None) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on a clean exit it is fsynced and renamed over ``path``.

    Args:
        path: the file.
        needed: bytes that it will have, where they are known: a full disk then says how many are missing.

    Raises:
        ResourceError: the disk is full.
        UsageError: the folder cannot be written.
    """
    with told(path, needed), _temporary(path, folder=False) as temp:
        yield temp
        # content before name: after a loss of power the name may not stand for a file without content
        with temp.open("rb") as file:
            os.fsync(file.fileno())
        temp.replace(path)
        _fsync_directory(path.parent)


@contextmanager
def scratch(path: Path, *, folder: bool) -> Iterator[Path]:
    """Yield a new temporary file or folder beside ``path``, which is removed in the end.

    Raises:
        ResourceError: the disk is full.
        UsageError: the folder cannot be written.
    """
    with told(path), _temporary(path, folder=folder) as temp:
        yield temp


@contextmanager
def atomic_directory(path: Path, own: Iterable[str]) -> Iterator[Path]:
    """Yield a new temporary folder beside ``path``; on a clean exit it takes the place of ``path``.

    Args:
        path: the folder; a link to one is replaced, and what it leads to is left alone.
        own: patterns of the names that may lie there from before and are replaced; whatever else somebody has put into
            the folder comes along.

    Raises:
        ResourceError: the disk is full.
        UsageError: the folder cannot be written.
    """
    old = path.parent / f"{OLD_PREFIX}{path.name}"
    try:
        with told(path), _temporary(path, folder=True) as temp:
            yield temp
            _bring_along(path, temp, (*own, f"{TEMP_PREFIX}*"))
            _fsync_directory(temp)
            # a folder with content cannot be renamed over; what a kill between the two leaves, settle() ends
            if os.path.lexists(path):
                path.rename(old)
            temp.rename(path)
            _fsync_directory(path.parent)
    finally:
        settle(old, path)


def _bring_along(path: Path, temp: Path, own: Iterable[str]) -> None:
    """Link what is not ours in the folder ``path`` into ``temp``: it may be large, and links need no space."""
    if not path.is_dir() or path.is_symlink():
        return
    replaced = shutil.ignore_patterns(*own)

    def ignored(folder: str, names: list[str]) -> set[str]:
        return replaced(folder, names) if Path(folder) == path else set()

    shutil.copytree(path, temp, symlinks=True, ignore=ignored, copy_function=os.link, dirs_exist_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` so that ``path`` holds either the old or the new content, never half of it."""
    with atomic_path(path, len(data)) as temp:
        temp.write_bytes(data)


def write_json(path: Path, document: Any) -> None:
    """Write :func:`canonical_json` atomically."""
    write_bytes(path, canonical_json(document))


def map_scratch(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """Return a writable array in a file of its own, whose space is reserved: a full disk shows here.

    Without the reservation the first write to a page that finds no space kills the process (SIGBUS).

    Raises:
        ResourceError: the disk is full.
    """
    needed = int(np.prod(shape)) * dtype.itemsize
    try:
        # what lies there is of an earlier block; never through a link
        path.unlink(missing_ok=True)
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o666)
        try:
            os.posix_fallocate(handle, 0, needed)
        finally:
            os.close(handle)
        return np.memmap(path, dtype, "r+", shape=shape)
    except OSError as error:
        raise disk_error(error, path, needed) from error


def settle(old: Path, path: Path) -> None:
    """End a swap of folders that may have stopped between its two renames: the new folder, or else the old one."""
    if not os.path.lexists(old):
        return
    if os.path.lexists(path):
        remove(old)
    else:
        old.rename(path)


def _fsync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def disk_error(error: OSError, path: Path, needed: int | None = None) -> GacqError:
    """Return what a failure to write ``path`` means: no disk, no memory, or a place that is not writable.

    ``needed`` are the bytes of it, where they are known.
    """
    if error.errno in FULL:
        return no_space(error, path, needed)
    return lack_of_memory(error, f"Writing {path}") or UsageError(
        f"Cannot write {path}: {error.strerror or error}.",
        "Choose a writable directory with -o, or mend its permissions.",
    )
