"""In which order is a machine looked at?

Versions come from package metadata, so a broken or heavy package is never imported to be looked at. Engines are
the exception: each is really opened, because only that shows what it can do; NVIDIA's in a child process.
"""

from __future__ import annotations

from pathlib import Path

from gacq_deploy.doctor import engines, gpu, machine, nvidia, packages
from gacq_deploy.doctor.findings import DoctorReport


def examine(directory: Path) -> DoctorReport:
    """Look at this machine; ``directory`` is where runs would be written."""
    graphics = gpu.look()
    checks = [machine.python(), machine.system(), machine.cpu(), *gpu.checks(graphics)]
    checks += packages.checks()
    checks += [engines.wheels(), *engines.opened(), *engines.providers()]
    checks += nvidia.checks(graphics)
    checks += [machine.disk(directory), machine.memory()]
    return DoctorReport(tuple(checks))
