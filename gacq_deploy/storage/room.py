"""How much disk and memory is there? Asked before work begins."""

from __future__ import annotations

import shutil
from pathlib import Path


def free_disk(folder: Path) -> tuple[Path, int]:
    """Return the nearest place that exists at or above ``folder``, and the bytes that are free there."""
    place = next(p for p in (folder.resolve(), *folder.resolve().parents) if p.exists())
    return place, shutil.disk_usage(place).free


def available_memory() -> int | None:
    """Return the bytes that Linux can give without swapping; None on another system."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return None
