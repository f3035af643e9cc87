"""Are GPUs read right from what nvidia-smi prints, and do both witnesses make one picture?"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest

from gacq_deploy.doctor import gpu
from gacq_deploy.doctor.ask import Reply
from gacq_deploy.doctor.gpu import Gpu, Graphics, checks, merge, parse_smi

H100 = "NVIDIA H100 80GB HBM3, 580.82.07, 81559 MiB, 9.0\n"
RECORDED = {
    "t4-pair": ("Tesla T4, 550.54.15, 15360 MiB, 7.5\n" * 2, (7, 5), 16106, "550.54.15"),
    "a100": ("NVIDIA A100-SXM4-80GB, 535.104.05, 81920 MiB, 8.0\n", (8, 0), 85899, "535.104.05"),
    "orin": ("Orin (nvgpu), 540.4.0, [N/A], 8.7\n", (8, 7), None, "540.4.0"),
    "orin-driver-unknown": ("Orin (nvgpu), N/A, [N/A], [N/A]\n", None, None, None),
    "rtx-4090": ("NVIDIA GeForce RTX 4090, 560.35.03, 24564 MiB, 8.9\n", (8, 9), 25757, "560.35.03"),
    "h100": (H100, (9, 0), 85520, "580.82.07"),
    "old-driver": ("Tesla V100-SXM2-16GB, 450.80.02, 16160 MiB\n", None, 16944, "450.80.02"),
}


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_lines(name: str) -> None:
    text, capability, memory, driver = RECORDED[name]
    gpus, version = parse_smi(text)
    assert len(gpus) == text.count("\n")
    assert all((g.capability, g.memory_mb) == (capability, memory) for g in gpus)
    assert version == driver
    assert gpus[0].name == text.split(",", maxsplit=1)[0]


@pytest.mark.parametrize(
    "text", ["", "No devices were found\n", "\n\n"], ids=["nothing", "none-found", "blank"]
)
def test_text_without_a_gpu(text: str) -> None:
    assert parse_smi(text) == ((), None)


def _cuda(*devices: dict[str, Any], version: tuple[int, int] = (13, 0), problem: str = "") -> Reply:
    return Reply({"cuda": list(version), "devices": list(devices)}, problem)


H100_DEVICE = {"name": "NVIDIA H100 80GB HBM3", "capability": [9, 0], "memory": 85_029_158_912}
NO_LIBCUDA = Reply({"absent": True})


def _values(graphics: Graphics) -> dict[str, tuple[str, str]]:
    return {check.name: (check.status, check.value) for check in checks(graphics)}


def test_a_working_gpu() -> None:
    graphics = merge(*parse_smi(H100), "", _cuda(H100_DEVICE))
    assert _values(graphics) == {
        "gpu": ("ok", "NVIDIA H100 80GB HBM3, compute capability 9.0, 85 GB"),
        "nvidia driver": ("ok", "580.82.07 (CUDA 13.0)"),
        "gpu precision": (
            "ok",
            "Hopper (9.0): INT8 pays; the GPU has FP8 as well, which this version does not export",
        ),
    }


def test_no_gpu_is_fine() -> None:
    assert _values(merge((), None, "", NO_LIBCUDA)) == {"gpu": ("ok", "none seen (nothing here needs one)")}


def test_a_gpu_that_only_nvidia_smi_sees_is_a_warning() -> None:
    found = _values(merge(*parse_smi(H100), "", NO_LIBCUDA))
    assert found["gpu"][0] == "warning"
    assert found["gpu"][1].endswith("libcuda.so.1 is not here")
    assert found["nvidia driver"][1] == "580.82.07 (CUDA version unknown)"
    assert "Hopper" in found["gpu precision"][1]


def test_a_gpu_on_which_cuda_does_not_start_is_a_warning() -> None:
    problem = "CUDA does not start: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH (803)"
    found = _values(merge(*parse_smi(H100), "", _cuda(problem=problem)))
    assert found["gpu"][0] == "warning"
    assert found["gpu"][1].endswith(problem)


def test_a_gpu_without_nvidia_smi_needs_none() -> None:
    found = _values(merge((), None, "", _cuda(H100_DEVICE)))
    assert found["gpu"][0] == "ok"
    assert found["nvidia driver"] == ("ok", "version unknown (CUDA 13.0)")


def test_a_broken_nvidia_smi_matters_only_where_cuda_sees_no_gpu_either() -> None:
    said = "nvidia-smi failed: NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
    assert _values(merge((), None, said, NO_LIBCUDA))["gpu"] == ("warning", f"none: {said}")
    assert _values(merge((), None, said, _cuda(H100_DEVICE)))["gpu"][0] == "ok"


def test_different_gpus_get_different_advice() -> None:
    graphics = Graphics(listed=(Gpu("a", 1, (7, 5)), Gpu("b", 1, (8, 9)), Gpu("c", 1, (7, 5))))
    advice = [check.value for check in checks(graphics) if check.name == "gpu precision"]
    assert [text.split(" ", maxsplit=1)[0] for text in advice] == ["Turing", "Ada"]


def _install(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_an_old_nvidia_smi_is_asked_again_without_the_field_it_does_not_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (
        'case "$1" in *compute_cap*) echo \'Field "compute_cap" is not a valid field to query.\'; exit 2;; esac\n'
        f"echo '{RECORDED['old-driver'][0].strip()}'"
    )
    _install(tmp_path, script, monkeypatch)
    gpus, driver, problem = gpu._ask_smi()
    assert (gpus, driver, problem) == ((Gpu("Tesla V100-SXM2-16GB", 16944),), "450.80.02", "")


def test_the_first_complaint_of_a_broken_nvidia_smi_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install(tmp_path, "echo 'Driver/library version mismatch'; echo more >&2; exit 18", monkeypatch)
    assert gpu._ask_smi() == ((), None, "nvidia-smi failed: Driver/library version mismatch")
