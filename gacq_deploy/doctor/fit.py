"""Do the driver, CUDA, ONNX Runtime and TensorRT that are here fit each other?"""

from __future__ import annotations

import re
from dataclasses import dataclass

from gacq_deploy.doctor.precision import ComputeCapability, dotted

OLDEST_DRIVER: dict[int, int] = {11: 450, 12: 525, 13: 580}
"""CUDA major -> first driver branch (Linux) that runs programs built with it.

NVIDIA CUDA Compatibility, Minor Version Compatibility: docs.nvidia.com/deploy/cuda-compatibility
"""
TENSORRT_OLDEST_DRIVER: dict[int, int] = {12: 535, 13: 580}
"""The same for TensorRT's wheels: NVIDIA TensorRT 10.16 and 11.4, Prerequisites."""
RTX_TARGETS: frozenset[ComputeCapability] = frozenset({(7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1)})
"""Compute capabilities that TensorRT-RTX 1.7's builder accepts; its support matrix has 7.5, 8.6, 8.9 and 12.0."""
_TENSORRT_WHEEL = re.compile(r"^tensorrt[-_](rtx[-_])?cu(\d+)[-_]libs$")


@dataclass(frozen=True)
class Driver:
    """The NVIDIA driver: its version (``580.82.07``) and the newest CUDA that it speaks, where known."""

    version: str | None
    cuda: tuple[int, int] | None

    @property
    def branch(self) -> int | None:
        """First part of the version."""
        first = (self.version or "").partition(".")[0]
        return int(first) if first.isdigit() else None

    def __str__(self) -> str:
        speaks = f" (CUDA {dotted(self.cuda)})" if self.cuda else ""
        return f"driver {self.version or 'of unknown version'}{speaks}"


@dataclass(frozen=True)
class Built:
    """A package that was built for a CUDA major version: ``onnxruntime-gpu 1.31.1``, 13."""

    label: str
    cuda: int

    @property
    def oldest_driver(self) -> int | None:
        """First driver branch that it needs; None where no table has it."""
        table = TENSORRT_OLDEST_DRIVER if self.label.startswith("tensorrt ") else OLDEST_DRIVER
        return table.get(self.cuda)


def driver_misfit(driver: Driver, package: Built) -> str:
    """Return why the driver cannot run the package, or nothing."""
    needed = package.oldest_driver
    if needed is None:
        return ""
    speaks_it = driver.cuda is None or driver.cuda[0] >= package.cuda
    new_enough = driver.branch is None or driver.branch >= needed
    if speaks_it and new_enough:
        return ""
    return f"{package.label} is built for CUDA {package.cuda} and needs driver {needed} or newer"


def execution_provider_misfit(wanted: int | None, tensorrt: str | None) -> str:
    """Return why ONNX Runtime's TensorRT provider cannot load the TensorRT that is here, or nothing.

    Args:
        wanted: the TensorRT major version that the provider was linked against; None: no provider.
        tensorrt: version of the TensorRT here; None: none.
    """
    if wanted is None or tensorrt is None or int(tensorrt.partition(".")[0]) == wanted:
        return ""
    return (
        f"ONNX Runtime's TensorRT provider wants TensorRT {wanted} and cannot load {tensorrt};"
        " gacq-deploy drives TensorRT itself and does not need it"
    )


def rtx_misfit(capabilities: frozenset[ComputeCapability]) -> str:
    """Return which of the GPUs here TensorRT-RTX does not compile for, or nothing."""
    left = sorted(capabilities - RTX_TARGETS)
    if not left:
        return ""
    return (
        f"TensorRT-RTX does not compile for compute capability {', '.join(map(dotted, left))}: use tensorrt"
    )


def tensorrt_wheel_cuda(distribution: str) -> tuple[str, int] | None:
    """Read library and CUDA major from the name of a wheel with libraries: ``tensorrt-cu13-libs``."""
    match = _TENSORRT_WHEEL.match(distribution.lower())
    if match is None:
        return None
    return ("tensorrt-rtx" if match[1] else "tensorrt", int(match[2]))


def provider_tensorrt(library: bytes) -> int | None:
    """Read from the bytes of ``libonnxruntime_providers_tensorrt.so`` which TensorRT major it loads."""
    match = re.search(rb"libnvinfer\.so\.(\d+)", library)
    return int(match[1]) if match else None


def built_with_cuda(build_info: str) -> int | None:
    """Read the CUDA major from the build information of ONNX Runtime or PyTorch; None for a CPU build."""
    match = re.search(r"""^cuda(?:_version)?\s*(?::[^=\n]*)?=\s*['"](\d+)""", build_info, re.MULTILINE)
    return int(match[1]) if match else None
