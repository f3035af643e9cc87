"""Is there room for what a calibration will need? Asked before it begins, not found out in its middle."""

from __future__ import annotations

from pathlib import Path

from gacq_deploy.errors import ResourceError
from gacq_deploy.storage.room import available_memory, free_disk

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
    there, free = free_disk(folder)
    free_mb = free / 2**20
    if free_mb < needed_mb / _OFF_BY:
        raise ResourceError(
            f"{there} has {free_mb:.1f} MB of free disk; this calibration needs about {needed_mb:.1f} MB.",
            "Free disk space, choose another directory with -o, or take fewer samples (samples.trajectories).",
        )


def memory_shortage(needed_mb: float) -> str | None:
    """Return what is to be said if the estimated memory (MiB) is more than what is available now; None: it fits."""
    available = available_memory()
    if available is None or needed_mb * 2**20 <= available:
        return None
    return (
        f"about {needed_mb:.0f} MB of memory are needed, and {available / 2**20:.0f} MB are available: lower "
        "calibration.memory_mb or the batch of calibration.polish, or end other programs"
    )
