"""How does a process give back memory that it has freed? The C library keeps it where it lies between what is in use.

A stage that held much would otherwise be part of what every later one holds.
"""

from __future__ import annotations

import ctypes


def give_back_memory() -> None:
    """Let the system have what was freed, where the C library can (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
