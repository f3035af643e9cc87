"""What Python, processor, disk and memory are here?"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

from gacq_deploy.backends.processor import VNNI, this_processor
from gacq_deploy.doctor.findings import Check
from gacq_deploy.storage.room import available_memory, free_disk

_DOT_PRODUCTS = VNNI | {"asimddp", "i8mm"}
"""Of x86, and Arm's two flags for the same."""
_LOW_DISK = 2_000_000_000
_LOW_MEMORY = 2_000_000_000


def python() -> Check:
    """Name the interpreter."""
    return Check("python", "ok", f"{platform.python_version()} ({sys.executable})")


def system() -> Check:
    """Name the system, and count its cores."""
    return Check("platform", "ok", f"{platform.platform()}, {os.cpu_count()} cores")


def cpu() -> Check:
    """Integer dot-product instructions decide how much INT8 gains over float on this CPU."""
    processor = this_processor()
    if not processor.flags:
        return Check(
            "cpu int8",
            "warning",
            f"{processor.name}: its features cannot be read",
            "`gacq-deploy bench` measures INT8.",
        )
    found = sorted(processor.flags & _DOT_PRODUCTS)
    if found:
        return Check("cpu int8", "ok", f"{processor.name}: {', '.join(found)}")
    return Check(
        "cpu int8",
        "warning",
        f"{processor.name}: no integer dot product",
        "Exact INT8 gains little over float here; `gacq-deploy bench` measures it.",
    )


def disk(directory: Path) -> Check:
    """Tell how much can be written to ``directory``, which need not exist yet."""
    place, free = free_disk(directory)
    value = f"{free / 1e9:.1f} GB free at {place}"
    if free < _LOW_DISK:
        return Check(
            "disk", "warning", value, "`gacq-deploy calibrate --dry-run` estimates what a run needs."
        )
    return Check("disk", "ok", value)


def memory() -> Check:
    """Tell how much memory a command may use."""
    available = available_memory()
    if available is None:
        return Check("memory", "warning", "unknown: /proc/meminfo cannot be read")
    value = f"{available / 1e9:.1f} GB available"
    if available < _LOW_MEMORY:
        return Check("memory", "warning", value, "Lower calibration.memory_mb with --set.")
    return Check("memory", "ok", value)
