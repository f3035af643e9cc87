"""What does doctor say of TensorRT: loads, builds, fits?"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from gacq_deploy.doctor import nvidia
from gacq_deploy.doctor.ask import Reply
from gacq_deploy.doctor.fit import Built, Driver
from gacq_deploy.doctor.gpu import Gpu, Graphics

OLD = Driver("550.54.15", (12, 4))
NEW = Driver("580.82.07", (13, 0))
PACKAGES = (Built("onnxruntime-gpu 1.31.1", 13), Built("tensorrt 11.4.0.106", 13))


@pytest.mark.parametrize(
    ("reply", "installed", "status", "says"),
    [
        (Reply({"version": "11.4.0.106", "builder": True}), True, "ok", "11.4.0.106, its builder opens"),
        (Reply({"version": "11.4.0.106", "builder": None}), True, "ok", "its builder needs a GPU"),
        (Reply({"version": "11.4.0.106", "builder": False}), True, "warning", "builder does not open"),
        (
            Reply(problem="tensorrt is not available: No module named 'tensorrt'."),
            False,
            "absent",
            "not installed",
        ),
        (Reply(problem="libnvinfer.so.11: cannot open"), True, "warning", "does not load: libnvinfer.so.11"),
        (Reply(problem="it crashed: SIGSEGV"), True, "warning", "it crashed: SIGSEGV"),
    ],
    ids=["builds", "no-gpu", "no-builder", "absent", "broken", "crash"],
)
def test_a_library(reply: Reply, installed: bool, status: str, says: str) -> None:
    check = nvidia.library("tensorrt", reply, installed=installed)
    assert check.status == status
    assert says in check.value
    if status == "absent":
        assert check.hint.startswith("pip install 'gacq-deploy[trt]'")


def test_everything_fits() -> None:
    check = nvidia.fit(NEW, PACKAGES, ())
    assert check.status == "ok"
    assert check.value == (
        "driver 580.82.07 (CUDA 13.0) fits onnxruntime-gpu 1.31.1 (CUDA 13), tensorrt 11.4.0.106 (CUDA 13)"
    )


def test_every_misfit_is_named() -> None:
    check = nvidia.fit(OLD, PACKAGES, ("and another thing",))
    assert check.status == "warning"
    assert all(package.label in check.value for package in PACKAGES)
    assert check.value.endswith("and another thing")


def test_versions_are_compared_only_where_a_gpu_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia, "ask", lambda *_question: Reply({"version": "1.7.1.116", "builder": True}))
    monkeypatch.setattr(nvidia, "built_for_cuda", lambda _versions: PACKAGES)
    without = [check.name for check in nvidia.checks(Graphics())]
    assert without == ["tensorrt", "tensorrt-rtx"]
    seen = Graphics(usable=(Gpu("x", 1, (9, 0)),), driver="550.54.15", cuda=(12, 4))
    assert [check.name for check in nvidia.checks(seen)] == [*without, "nvidia versions"]


def test_misfits_beside_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    capi = tmp_path / "onnxruntime" / "capi"
    capi.mkdir(parents=True)
    (capi / "libonnxruntime_providers_tensorrt.so").write_bytes(b"\0libnvinfer.so.10\0")
    (capi / "build_and_package_info.py").write_text("cuda_version = '13.0'\n")
    info = tmp_path / "onnxruntime_gpu-1.31.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 1.31.1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    hopper = Graphics(usable=(Gpu("x", 1, (9, 0)),))
    (provider,) = nvidia.misfits({"tensorrt": "11.4.0.106", "tensorrt-rtx": "1.7.1.116"}, hopper)
    assert "wants TensorRT 10" in provider
    (rtx,) = nvidia.misfits({"tensorrt-rtx": "1.7.1.116"}, hopper)
    assert "9.0" in rtx
    assert Built("onnxruntime-gpu 1.31.1", 13) in nvidia.built_for_cuda({})


@pytest.mark.rtx
def test_the_installed_wheel_tells_its_cuda_version() -> None:
    version = metadata.version("tensorrt_rtx_cu13_libs")
    assert Built(f"tensorrt-rtx {version}", 13) in nvidia.built_for_cuda({"tensorrt-rtx": version})
    assert nvidia._has_distribution("tensorrt-rtx")
