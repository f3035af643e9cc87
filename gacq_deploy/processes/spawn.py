"""How is a module of this package run in a process of its own, and nothing else by accident?"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path


def module_command(module: str) -> tuple[str, ...]:
    """Return the command that runs ``module``; a file in the working directory cannot shadow a library (``-P``)."""
    return (sys.executable, "-P", "-m", module)


def child_environment(**extra: str) -> dict[str, str]:
    """Return this process's environment, in which a child finds this package first, and ``extra``."""
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH", "")) if p)
    return {**os.environ, "PYTHONPATH": path, **extra}


def signal_name(number: int) -> str:
    """Return what a signal is called, also one that Python has no name for."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
