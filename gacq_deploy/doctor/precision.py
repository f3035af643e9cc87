"""Which precision pays on a GPU of a given generation, and who says so?"""

from __future__ import annotations

from dataclasses import dataclass

from gacq_deploy.doctor.findings import FindingStatus

ComputeCapability = tuple[int, int]

PREREQUISITES = "NVIDIA TensorRT 10.16 and 11.4, Prerequisites (docs.nvidia.com/deeplearning/tensorrt)"
SUPPORT_MATRIX = "NVIDIA TensorRT-LLM, Support Matrix, precisions by SM (nvidia.github.io/TensorRT-LLM)"
BLACKWELL = "NVIDIA TensorRT 11.5 release notes (INT8 at 10.3); github.com/vllm-project/vllm PR 25935 (no INT8 kernels)"


@dataclass(frozen=True)
class Generation:
    """What holds from compute capability ``since`` on, up to the next row."""

    since: ComputeCapability
    name: str
    status: FindingStatus
    advice: str
    source: str


_NO_FP8 = "INT8 pays; the GPU has no FP8"
_FP8_TOO = "INT8 pays; the GPU has FP8 as well, which this version does not export"
GENERATIONS: tuple[Generation, ...] = (
    Generation((0, 0), "before Turing", "warning", "too old for TensorRT 10.16 and later", PREREQUISITES),
    Generation((7, 5), "Turing", "ok", _NO_FP8, SUPPORT_MATRIX),
    Generation((8, 0), "Ampere", "ok", _NO_FP8, SUPPORT_MATRIX),
    Generation((8, 9), "Ada", "ok", _FP8_TOO, SUPPORT_MATRIX),
    Generation((9, 0), "Hopper", "ok", _FP8_TOO, SUPPORT_MATRIX),
    Generation(
        (10, 0),
        "Blackwell",
        "ok",
        "made for FP8 and FP4, which this version does not export; INT8 runs, and whether it beats FP16 only"
        " `gacq-deploy bench` tells",
        BLACKWELL,
    ),
)
"""By compute capability, oldest first."""
_NAMES: dict[ComputeCapability, str] = {(8, 7): "Ampere (Orin)", (11, 0): "Blackwell (Thor)"}


def generation(capability: ComputeCapability) -> Generation:
    """Return the row for a compute capability."""
    return next(row for row in reversed(GENERATIONS) if capability >= row.since)


def advise(capability: ComputeCapability) -> tuple[FindingStatus, str, str]:
    """Return status, sentence and source for a compute capability."""
    row = generation(capability)
    name = _NAMES.get(capability, row.name)
    return row.status, f"{name} ({dotted(capability)}): {row.advice}", row.source


def dotted(version: tuple[int, int]) -> str:
    """Write a pair as ``8.6``."""
    return f"{version[0]}.{version[1]}"
