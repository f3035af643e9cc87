"""Are GPUs read right from what NVML says, and do both witnesses make one picture?"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pynvml
import pytest

from gacq_deploy.doctor.ask import Reply
from gacq_deploy.doctor.gpu import Gpu, Graphics, checks, merge
from gacq_deploy.doctor.probe import main

MIB = 1_048_576
NOT_SUPPORTED = pynvml.NVML_ERROR_NOT_SUPPORTED


def _refused(code: int) -> Any:
    raise pynvml.NVMLError(code)


@dataclass
class Nvml:
    """What NVML answers: for a GPU its name, memory in MiB and capability; a number stands for the error it gives."""

    gpus: tuple[tuple[str, int | None, tuple[int, int] | None], ...] = ()
    driver: str | None = None
    init: int = pynvml.NVML_SUCCESS
    lost: set[int] = field(default_factory=set)

    def install(self, patch: pytest.MonkeyPatch) -> None:
        for function in (
            self.nvmlInit, self.nvmlSystemGetDriverVersion, self.nvmlDeviceGetCount, self.nvmlDeviceGetHandleByIndex,
            self.nvmlDeviceGetName, self.nvmlDeviceGetMemoryInfo, self.nvmlDeviceGetCudaComputeCapability,
        ):  # fmt: skip
            patch.setattr(pynvml, function.__name__, function)

    def nvmlInit(self) -> None:  # noqa: N802
        if self.init != pynvml.NVML_SUCCESS:
            _refused(self.init)

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return self.driver or _refused(NOT_SUPPORTED)

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return _refused(pynvml.NVML_ERROR_GPU_IS_LOST) if index in self.lost else index

    def nvmlDeviceGetName(self, handle: int) -> str:  # noqa: N802
        return self.gpus[handle][0]

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:  # noqa: N802
        mib = self.gpus[handle][1]
        return _refused(NOT_SUPPORTED) if mib is None else pynvml.c_nvmlMemory_t(total=mib * MIB)

    def nvmlDeviceGetCudaComputeCapability(self, handle: int) -> tuple[int, int]:  # noqa: N802
        return self.gpus[handle][2] or _refused(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)


T4, H100 = ("Tesla T4", 15360, (7, 5)), ("NVIDIA H100 80GB HBM3", 81559, (9, 0))
KNOWN = {
    "t4-pair": (Nvml((T4, T4), "550.54.15"), (7, 5), 16106),
    "a100": (Nvml((("NVIDIA A100-SXM4-80GB", 81920, (8, 0)),), "535.104.05"), (8, 0), 85899),
    "orin": (Nvml((("Orin (nvgpu)", None, (8, 7)),), "540.4.0"), (8, 7), None),
    "orin-driver-unknown": (Nvml((("Orin (nvgpu)", None, None),)), None, None),
    "h100": (Nvml((H100,), "580.82.07"), (9, 0), 85520),
    "old-driver": (Nvml((("Tesla V100-SXM2-16GB", 16160, None),), "450.80.02"), None, 16944),
    "no-gpu": (Nvml((), "580.82.07"), None, None),
}
"""What is answered, and each GPU's capability and megabytes."""
NO_NVML = Reply({"absent": True})


def _asked() -> Reply:
    """Return what a child process would answer."""
    answer = main("nvml")
    return Reply(answer, answer.get("problem", ""))


@pytest.mark.parametrize("name", KNOWN)
def test_what_nvml_lists(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml, capability, memory = KNOWN[name]
    nvml.install(monkeypatch)
    found = merge(_asked(), NO_LIBCUDA)
    assert found.listed == tuple(Gpu(gpu[0], memory, capability) for gpu in nvml.gpus)
    assert found.driver == nvml.driver


def test_without_the_drivers_library_there_is_nothing_to_list(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "CDLL", missing)
    assert _asked() == NO_NVML


@pytest.mark.parametrize(
    ("nvml", "says"),
    [
        (Nvml(init=pynvml.NVML_ERROR_DRIVER_NOT_LOADED), "Driver Not Loaded"),
        (
            Nvml(init=pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH),
            "RM has detected an NVML/RM version mismatch.",
        ),
        (Nvml((T4, H100), "580.82.07", lost={1}), "GPU is lost"),
    ],
    ids=["not-loaded", "mismatch", "lost"],
)
def test_what_nvml_refuses_is_a_problem(nvml: Nvml, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml.install(monkeypatch)
    assert merge(_asked(), NO_LIBCUDA).problem == f"NVML failed: {says}"


def _cuda(*devices: dict[str, Any], version: tuple[int, int] = (13, 0), problem: str = "") -> Reply:
    return Reply({"cuda": list(version), "devices": list(devices)}, problem)


H100_DEVICE = {"name": "NVIDIA H100 80GB HBM3", "capability": [9, 0], "memory": 85_029_158_912}
NO_LIBCUDA = Reply({"absent": True})
LISTED = Reply(
    {"driver": "580.82.07", "devices": [{"name": H100[0], "memory": H100[1] * MIB, "capability": [9, 0]}]}
)


def _values(graphics: Graphics) -> dict[str, tuple[str, str]]:
    return {check.name: (check.status, check.value) for check in checks(graphics)}


def test_a_working_gpu() -> None:
    graphics = merge(LISTED, _cuda(H100_DEVICE))
    assert _values(graphics) == {
        "gpu": ("ok", "NVIDIA H100 80GB HBM3, compute capability 9.0, 85 GB"),
        "nvidia driver": ("ok", "580.82.07 (CUDA 13.0)"),
        "gpu precision": (
            "ok",
            "Hopper (9.0): INT8 pays; the GPU has FP8 as well, which this version does not export",
        ),
    }


def test_no_gpu_is_fine() -> None:
    assert _values(merge(NO_NVML, NO_LIBCUDA)) == {"gpu": ("ok", "none seen (nothing here needs one)")}


def test_a_gpu_that_only_nvml_sees_is_a_warning() -> None:
    found = _values(merge(LISTED, NO_LIBCUDA))
    assert found["gpu"][0] == "warning"
    assert found["gpu"][1].endswith("libcuda.so.1 is not here")
    assert found["nvidia driver"][1] == "580.82.07 (CUDA version unknown)"
    assert "Hopper" in found["gpu precision"][1]


def test_a_gpu_on_which_cuda_does_not_start_is_a_warning() -> None:
    problem = "CUDA does not start: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH (803)"
    found = _values(merge(LISTED, _cuda(problem=problem)))
    assert found["gpu"][0] == "warning"
    assert found["gpu"][1].endswith(problem)


def test_a_gpu_without_nvml_needs_none() -> None:
    found = _values(merge(NO_NVML, _cuda(H100_DEVICE)))
    assert found["gpu"][0] == "ok"
    assert found["nvidia driver"] == ("ok", "version unknown (CUDA 13.0)")


def test_a_broken_nvml_matters_only_where_cuda_sees_no_gpu_either() -> None:
    broken = Reply(problem="Driver/library version mismatch")
    said = "NVML failed: Driver/library version mismatch"
    assert _values(merge(broken, NO_LIBCUDA))["gpu"] == ("warning", f"none: {said}")
    assert _values(merge(broken, _cuda(H100_DEVICE)))["gpu"][0] == "ok"


def test_different_gpus_get_different_advice() -> None:
    graphics = Graphics(listed=(Gpu("a", 1, (7, 5)), Gpu("b", 1, (8, 9)), Gpu("c", 1, (7, 5))))
    advice = [check.value for check in checks(graphics) if check.name == "gpu precision"]
    assert [text.split(" ", maxsplit=1)[0] for text in advice] == ["Turing", "Ada"]
