"""Which process may write a directory?"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gacq_deploy.errors import ResourceError, UsageError, quoted
from gacq_deploy.storage.files import OLD_PREFIX, TEMP_PREFIX, disk_error, is_written, remove, settle, told

LOCK_NAME = ".gacq-lock"


_PATIENCE_S = (0.005, 0.02, 0.05, 0.1)
"""Pauses before a directory counts as held: who only asks for its holder keeps the lock for an instant."""


@contextmanager
def lock_directory(path: Path, *, make: bool = False) -> Iterator[None]:
    """Hold ``path`` for this process; stale temporary files of dead processes are removed.

    Args:
        path: the folder.
        make: make it where it is not there, with the folders above it: for who was asked to write a new one.

    Raises:
        ResourceError: another live process holds it, or the disk is full.
        UsageError: it is not there, or cannot be created or written; its lock is a link or no file; its file system has
            no locks.
    """
    try:
        if make:
            path.mkdir(parents=True, exist_ok=True)
        # never through a link: what it points to would be emptied
        handle = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _foreign(path) from error
        raise disk_error(error, path) from error
    try:
        if not _is_own(handle):
            raise _foreign(path)
        if not _try_lock(handle, path):
            raise ResourceError(
                f"{path} is in use by process {_named_in(handle)}.",
                "Wait for it to end, or choose another directory.",
            )
        holder = str(os.getpid()).encode()
        with told(path / LOCK_NAME, len(holder)):
            os.ftruncate(handle, 0)
            os.pwrite(handle, holder, 0)
        _clean_up(path)
        yield
    finally:
        # ends the lock; the file stays, for whoever waits on it would else hold one that nobody finds any more
        os.close(handle)


def lock_holder(path: Path) -> str | None:
    """Return the id of the process that holds ``path``, as it wrote it down; None where none does.

    Nothing is written. A directory whose lock may not be read counts as free.
    """
    try:
        handle = os.open(path / LOCK_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return _named_in(handle)
    else:
        return None
    finally:
        os.close(handle)


def _is_own(handle: int) -> bool:
    """Tell whether the lock is a regular file of one name: another name could be somebody's file."""
    found = os.fstat(handle)
    return stat.S_ISREG(found.st_mode) and found.st_nlink == 1


def _foreign(path: Path) -> UsageError:
    return UsageError(
        f"{path / LOCK_NAME} is a link, or no file: it is not ours, and is not followed.",
        f"Look where it leads, then remove it: rm {quoted(path / LOCK_NAME)}",
    )


def _try_lock(handle: int, path: Path) -> bool:
    for pause in (*_PATIENCE_S, 0):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(pause)
        except OSError as error:
            raise UsageError(
                f"{path} lies on a file system that gives no lock: {error.strerror}.",
                "Work on a local disk, and copy the run afterwards.",
            ) from error
        else:
            return True
    return False


def _named_in(handle: int) -> str:
    return os.pread(handle, 32, 0).decode(errors="replace").strip() or "unknown"


def _clean_up(root: Path) -> None:
    """Remove what dead processes left in ``root`` and below; other runs and linked folders are not touched."""
    for folder in _own_folders(root):
        for stale in list(folder.glob(f"{TEMP_PREFIX}*")):
            if stale.name.startswith(OLD_PREFIX):
                settle(stale, folder / stale.name.removeprefix(OLD_PREFIX))
            elif not is_written(stale):
                remove(stale)


def _own_folders(root: Path) -> Iterator[Path]:
    yield root
    for folder in list(root.iterdir()):
        if folder.is_symlink() or not folder.is_dir() or folder.name.startswith(TEMP_PREFIX):
            continue
        if not (folder / LOCK_NAME).exists():
            yield from _own_folders(folder)
