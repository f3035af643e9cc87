"""Is there room for what a calibration will need? Asked before it begins, not found out in its middle."""

from __future__ import annotations

import shutil
from pathlib import Path

from gacq_deploy.errors import ResourceError

_OFF_BY = 3
"""Disk is estimated within this factor."""


def check_disk(needed_mb: float, folder: Path) -> None:
    """Refuse a file system that cannot hold the run, whatever the estimate's error.

    Args:
        needed_mb: what is estimated, in MiB.
        folder: where the run will lie; it need not exist.

    Raises:
        ResourceError: less than a third of it is free.
    """
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    free_mb = shutil.disk_usage(there).free / 2**20
    if free_mb < needed_mb / _OFF_BY:
        raise ResourceError(
            f"{there} has {free_mb:.0f} MB of free disk; this calibration needs about {needed_mb:.0f} MB.",
            "Free disk space, choose another directory with -o, or take fewer samples (samples.trajectories).",
        )


def memory_shortage(needed_mb: float) -> str | None:
    """Return what is to be said if the estimated memory (MiB) is more than what is available now; None: it fits."""
    available = _available_mb()
    if available is None or needed_mb <= available:
        return None
    return (
        f"about {needed_mb:.0f} MB of memory are needed, and {available:.0f} MB are available: lower "
        "calibration.memory_mb or the batch of calibration.polish, or end other programs"
    )


def _available_mb() -> float | None:
    """Return what Linux says is available without swapping, in MiB; None on another system."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return None if found is None else int(found) / 1024
