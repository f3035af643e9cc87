"""Which NVIDIA GPUs and driver are here, does CUDA start on them, and which precision pays?

Two witnesses: nvidia-smi knows the driver's version, and libcuda what a process can really use.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from gacq_deploy.doctor.ask import Reply, ask
from gacq_deploy.doctor.findings import Check
from gacq_deploy.doctor.precision import Capability, advise, dotted

_FIELDS = ("name", "driver_version", "memory.total", "compute_cap")
_OLD_FIELDS = _FIELDS[:-1]  # drivers before 470 have no compute_cap
_UNKNOWN = ("", "[N/A]", "N/A", "[Not Supported]")


@dataclass(frozen=True)
class Gpu:
    """A GPU; ``memory_mb`` is None where it has none of its own."""

    name: str
    memory_mb: int | None = None
    capability: Capability | None = None

    def __str__(self) -> str:
        parts = [self.name]
        if self.capability is not None:
            parts.append(f"compute capability {dotted(self.capability)}")
        if self.memory_mb is not None:
            parts.append(f"{self.memory_mb / 1000:.0f} GB")
        return ", ".join(parts)


@dataclass(frozen=True)
class Graphics:
    """What both witnesses said. ``listed`` by nvidia-smi, ``usable`` through CUDA."""

    listed: tuple[Gpu, ...] = ()
    usable: tuple[Gpu, ...] = ()
    driver: str | None = None
    cuda: tuple[int, int] | None = None
    """The newest CUDA that the driver speaks."""
    problem: str = ""


def look() -> Graphics:
    """Ask nvidia-smi, and libcuda in a child process."""
    listed, driver, smi_problem = _ask_smi()
    return merge(listed, driver, smi_problem, ask("cuda"))


def merge(listed: tuple[Gpu, ...], driver: str | None, smi_problem: str, cuda: Reply) -> Graphics:
    """Make one picture of both witnesses."""
    answer = cuda.answer
    usable = tuple(
        Gpu(d["name"], d["memory"] // 1_000_000, (d["capability"][0], d["capability"][1]))
        for d in answer.get("devices", ())
    )
    problem = cuda.problem
    if answer.get("absent"):
        problem = "libcuda.so.1 is not here" if listed else ""
    spoken = answer.get("cuda")
    return Graphics(
        listed,
        usable,
        driver,
        (spoken[0], spoken[1]) if spoken else None,
        problem or ("" if usable else smi_problem),
    )


def checks(graphics: Graphics) -> Iterator[Check]:
    """Say which GPU, which driver and which precision."""
    seen = graphics.usable or graphics.listed
    if graphics.problem:
        found = "; ".join(map(str, seen)) or "none"
        yield Check(
            "gpu", "warning", f"{found}: {graphics.problem}", "Check the NVIDIA driver with `nvidia-smi`."
        )
    elif not seen:
        yield Check("gpu", "ok", "none seen (nothing here needs one)")
    else:
        yield Check("gpu", "ok", "; ".join(map(str, seen)))
    if graphics.driver or graphics.cuda:
        speaks = f"CUDA {dotted(graphics.cuda)}" if graphics.cuda else "CUDA version unknown"
        yield Check("nvidia driver", "ok", f"{graphics.driver or 'version unknown'} ({speaks})")
    for capability in sorted({gpu.capability for gpu in seen if gpu.capability is not None}):
        status, sentence, source = advise(capability)
        yield Check("gpu precision", status, sentence, f"Source: {source}")


def parse_smi(text: str) -> tuple[tuple[Gpu, ...], str | None]:
    """Read `nvidia-smi --query-gpu=name,driver_version,memory.total[,compute_cap] --format=csv,noheader`.

    Returns the GPUs and the driver's version. Fields that a GPU has not (`[N/A]` on Jetson) are None.
    """
    gpus, driver = [], None
    for line in text.splitlines():
        fields = [part.strip() for part in line.split(",")]
        if len(fields) < len(_OLD_FIELDS):
            continue
        name, version, memory, *capability = fields
        driver = driver or (version if version not in _UNKNOWN else None)
        gpus.append(Gpu(name, _megabytes(memory), _capability(capability[0]) if capability else None))
    return tuple(gpus), driver


def _megabytes(text: str) -> int | None:
    number, _, unit = text.partition(" ")
    return int(number) * 1_048_576 // 1_000_000 if number.isdigit() and unit == "MiB" else None


def _capability(text: str) -> Capability | None:
    major, _, minor = text.partition(".")
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else None


def _ask_smi() -> tuple[tuple[Gpu, ...], str | None, str]:
    """Return GPUs, driver and, where it failed, why."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return (), None, ""
    problem = ""
    for fields in (_FIELDS, _OLD_FIELDS):
        command = [tool, f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        except (OSError, subprocess.SubprocessError) as error:
            return (), None, f"nvidia-smi failed: {error}"
        if done.returncode == 0:
            return *parse_smi(done.stdout), ""
        said = (done.stdout.strip() or done.stderr.strip() or f"exit status {done.returncode}").splitlines()[
            0
        ]
        problem = problem or f"nvidia-smi failed: {said}"
    return (), None, problem
