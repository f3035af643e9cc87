"""Which process may write a directory?"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gacq_deploy.errors import ResourceError
from gacq_deploy.storage.files import OLD_PREFIX, TEMP_PREFIX, disk_error, settle

LOCK_NAME = ".gacq-lock"


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
        raise disk_error(error, path) from error
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
        # ends the lock; the file stays, for whoever waits on it would else hold one that nobody finds any more
        os.close(handle)


def _clean_up(root: Path) -> None:
    """Remove what dead processes left in ``root`` and below; other runs and linked folders are not touched."""
    for folder in _own_folders(root):
        for stale in list(folder.glob(f"{TEMP_PREFIX}*")):
            if stale.name.startswith(OLD_PREFIX):
                settle(stale, folder / stale.name.removeprefix(OLD_PREFIX))
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
        # another user's process, or a number that no process can have: not ours to clear away
        return True
    return True
