"""How much disk and memory is there? Asked before work begins."""

from __future__ import annotations

import errno
import resource
import shutil
from pathlib import Path

from gacq_deploy.errors import ResourceError
from gacq_deploy.storage.outputs import require_name

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What the system answers where there is no space: a quota and a limit on the size of files are a full disk too."""


def free_disk(folder: Path) -> tuple[Path, int]:
    """Return the nearest place that exists at or above ``folder``, and the bytes that are free there."""
    require_name(folder)
    place = next(p for p in (folder.resolve(), *folder.resolve().parents) if p.exists())
    return place, shutil.disk_usage(place).free


def available_memory() -> int | None:
    """Return the bytes that Linux can give without swapping; None on another system."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return None


def no_space(error: OSError, path: Path | str | None, needed: int | None = None) -> ResourceError:
    """Return what is said of a full disk, a used-up quota or a file larger than allowed: they have one remedy.

    Args:
        error: of the system.
        path: what was written.
        needed: bytes of it, where they are known; how many are missing is then said.
    """
    room, there = "", None
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if error.errno == errno.EFBIG and limit != resource.RLIM_INFINITY:
        room, there = f": a file may have {limit} bytes (ulimit -f)", limit
    elif path is not None:
        place, there = free_disk(Path(path).parent)
        room = f": {place} has {there} bytes free"
    # with a quota there may be more free than this user is given
    if needed is not None and there is not None:
        missing = f", so {needed - there} are missing" if needed > there else ""
        room += f" and {needed} bytes are needed{missing}"
    return ResourceError(
        f"No space left while writing {path or 'a file'} ({error.strerror}){room}. Earlier files are untouched.",
        "Free disk space, then run the same command again: it resumes.",
    )


def check_disk(needed: float, folder: Path, what: str, *, otherwise: str = "") -> None:
    """Refuse a file system that cannot hold what is to be written.

    Args:
        needed: bytes that are needed at least.
        folder: where they go; it need not exist.
        what: what needs them, for the message.
        otherwise: what else than freeing space would help.

    Raises:
        ResourceError: so much is not free.
    """
    place, free = free_disk(folder)
    if free < needed:
        raise ResourceError(
            f"{place} has {free / 1e6:.1f} MB of free disk; {what} needs at least {needed / 1e6:.1f} MB.",
            f"Free disk space{otherwise}.",
        )


def memory_shortage(needed: float, otherwise: str) -> str | None:
    """Return what is to be said if more bytes are needed than are available now; None: they fit, or nobody knows."""
    available = available_memory()
    if available is None or needed <= available:
        return None
    return f"about {needed / 1e6:.0f} MB of memory are needed, and {available / 1e6:.0f} MB are available: {otherwise}"
