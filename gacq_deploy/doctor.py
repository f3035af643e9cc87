"""Is this machine able to do what the commands need, and if not, what is missing?

Versions come from package metadata, so a broken or heavy package is never imported to be looked at. Engines are
the exception: each is really opened and run on a one-node graph, because only that shows what it can do.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
from onnx import TensorProto, helper

from gacq_deploy.backends import open_engine
from gacq_deploy.backends.wheels import onnxruntime_wheels, require_one_onnxruntime
from gacq_deploy.errors import BackendUnavailable, GacqError

Status = Literal["ok", "absent", "warning", "fail"]

BASE_PACKAGES = ("numpy", "onnx", "safetensors", "pydantic", "PyYAML", "click", "rich", "jinja2", "pillow")
CALIBRATE_PACKAGES = ("torch", "diffusers", "onnxscript")
_INT8_FLAGS = ("amx_int8", "avx512_vnni", "avx_vnni", "asimddp", "i8mm")
_LOW_DISK = 2_000_000_000
_LOW_MEMORY = 2_000_000_000


@dataclass(frozen=True)
class Check:
    """One finding: ``fail`` stops the main commands, ``warning`` narrows them, ``absent`` is optional."""

    name: str
    status: Status
    value: str
    hint: str = ""


@dataclass(frozen=True)
class DoctorReport:
    """All findings; true when none of them fails."""

    checks: tuple[Check, ...]

    def __bool__(self) -> bool:
        return all(check.status != "fail" for check in self.checks)

    def document(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {"passed": bool(self), "checks": [asdict(check) for check in self.checks]}


def examine(directory: Path) -> DoctorReport:
    """Look at this machine; ``directory`` is where runs would be written."""
    checks = [_python(), _platform(), _cpu(), _gpu()]
    checks += [_package(name, required=True, extra="") for name in BASE_PACKAGES]
    checks += [_package(name, required=False, extra="calibrate") for name in CALIBRATE_PACKAGES]
    checks += [_ort_wheels(), *_engines(), _disk(directory), _memory()]
    return DoctorReport(tuple(checks))


def _python() -> Check:
    return Check("python", "ok", f"{platform.python_version()} ({sys.executable})")


def _platform() -> Check:
    return Check("platform", "ok", f"{platform.platform()}, {os.cpu_count()} cores")


def _cpu() -> Check:
    """Integer dot-product instructions decide whether INT8 is faster than float on this CPU."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return Check(
            "cpu int8", "warning", "unknown: /proc/cpuinfo cannot be read", "`gacq-deploy bench` measures it."
        )
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    named = {key.strip(): value.strip() for key, value in fields.items()}
    words = set((named.get("flags") or named.get("Features") or "").split())
    found = [flag for flag in _INT8_FLAGS if flag in words]
    name = named.get("model name", platform.machine())
    if found:
        return Check("cpu int8", "ok", f"{name}: {', '.join(found)}")
    return Check(
        "cpu int8", "warning", f"{name}: no integer dot product", "INT8 may not be faster than float here."
    )


def _gpu() -> Check:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return Check("gpu", "ok", "none seen (nothing here needs one)")
    query = [tool, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return Check("gpu", "warning", f"nvidia-smi failed: {error}", "Check the NVIDIA driver.")
    return Check("gpu", "ok", "; ".join(answer.stdout.strip().splitlines()))


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _package(name: str, *, required: bool, extra: str) -> Check:
    version = _version(name)
    if version is not None:
        return Check(name, "ok", version)
    target = f"'gacq-deploy[{extra}]'" if extra else "gacq-deploy"
    return Check(name, "fail" if required else "absent", "not installed", f"pip install {target}")


def _ort_wheels() -> Check:
    name = "onnxruntime wheel"
    wheels = onnxruntime_wheels()
    if not wheels:
        return Check(
            name, "fail", "not installed", "pip install 'gacq-deploy[cpu]' (or [gpu] on a CUDA machine)"
        )
    try:
        require_one_onnxruntime()
    except BackendUnavailable as error:
        return Check(name, "fail", error.message, error.hint)
    return Check(name, "ok", ", ".join(f"{wheel} {version}" for wheel, version in wheels.items()))


def _engines() -> Iterator[Check]:
    """Really open and run each engine that needs no run directory."""
    cuda_wanted = "onnxruntime-gpu" in onnxruntime_wheels()
    for name, needed in (("ort-cpu", True), ("ort-cuda", cuda_wanted), ("openvino", False)):
        yield _engine(name, needed=needed)


def _engine(name: str, *, needed: bool) -> Check:
    try:
        with open_engine(name, _one_node_graph()) as engine:
            doubled = engine.run({"x": np.ones((2, 3), np.float32)})["y"]
            if not bool(np.array_equal(doubled, np.full((2, 3), 2, np.float32))):
                return Check(f"engine {name}", "fail", f"{engine.label} computed 1 + 1 = {doubled.flat[0]}")
            return Check(f"engine {name}", "ok", engine.label)
    except BackendUnavailable as error:
        return Check(f"engine {name}", "fail" if needed else "absent", error.message, error.hint)
    except GacqError as error:
        return Check(f"engine {name}", "fail", error.message, error.hint)


def _one_node_graph() -> bytes:
    """Return ``y = x + x`` for float32 ``x`` [batch, 3]."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "doctor",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    serialized: bytes = model.SerializeToString()
    return serialized


def _disk(directory: Path) -> Check:
    place = next(p for p in (directory.resolve(), *directory.resolve().parents) if p.exists())
    free = shutil.disk_usage(place).free
    value = f"{free / 1e9:.1f} GB free at {place}"
    if free < _LOW_DISK:
        return Check(
            "disk", "warning", value, "`gacq-deploy calibrate --dry-run` estimates what a run needs."
        )
    return Check("disk", "ok", value)


def _memory() -> Check:
    available = _available_memory()
    if available is None:
        return Check("memory", "warning", "unknown: /proc/meminfo cannot be read")
    value = f"{available / 1e9:.1f} GB available"
    if available < _LOW_MEMORY:
        return Check("memory", "warning", value, "Lower calibration.memory_mb with --set.")
    return Check("memory", "ok", value)


def _available_memory() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return None
