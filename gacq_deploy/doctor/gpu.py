"""Which NVIDIA GPUs and driver are here, does CUDA start on them, and which precision pays?

Two witnesses: NVML knows the driver's version, and libcuda what a process can really use.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gacq_deploy.doctor.ask import Reply, ask
from gacq_deploy.doctor.findings import Check
from gacq_deploy.doctor.precision import ComputeCapability, advise, dotted


@dataclass(frozen=True)
class Gpu:
    """A GPU; ``memory_mb`` is None where it has none of its own."""

    name: str
    memory_mb: int | None = None
    capability: ComputeCapability | None = None

    def __str__(self) -> str:
        parts = [self.name]
        if self.capability is not None:
            parts.append(f"compute capability {dotted(self.capability)}")
        if self.memory_mb is not None:
            parts.append(f"{self.memory_mb / 1000:.0f} GB")
        return ", ".join(parts)


@dataclass(frozen=True)
class Graphics:
    """What both witnesses said. ``listed`` by NVML, ``usable`` through CUDA."""

    listed: tuple[Gpu, ...] = ()
    usable: tuple[Gpu, ...] = ()
    driver: str | None = None
    cuda: tuple[int, int] | None = None
    """The newest CUDA that the driver speaks."""
    problem: str = ""


def look() -> Graphics:
    """Ask NVML and libcuda, each in a child process."""
    return merge(ask("nvml"), ask("cuda"))


def merge(nvml: Reply, cuda: Reply) -> Graphics:
    """Make one picture of both witnesses."""
    listed, usable = _gpus(nvml.answer), _gpus(cuda.answer)
    problem = cuda.problem
    if cuda.answer.get("absent"):
        problem = "libcuda.so.1 is not here" if listed else ""
    # where CUDA works, a silent NVML takes nothing away
    if not problem and not usable and nvml.problem:
        problem = f"NVML failed: {nvml.problem}"
    spoken = cuda.answer.get("cuda")
    return Graphics(
        listed,
        usable,
        nvml.answer.get("driver"),
        (spoken[0], spoken[1]) if spoken else None,
        problem,
    )


def _gpus(answer: dict[str, Any]) -> tuple[Gpu, ...]:
    """Read the ``devices`` of a witness; None stands for what a GPU does not tell of itself."""
    return tuple(_gpu(device) for device in answer.get("devices", ()))


def _gpu(device: dict[str, Any]) -> Gpu:
    memory, pair = device["memory"], device["capability"]
    memory_mb = None if memory is None else memory // 1_000_000
    capability = None if pair is None else (pair[0], pair[1])
    return Gpu(device["name"], memory_mb, capability)


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
