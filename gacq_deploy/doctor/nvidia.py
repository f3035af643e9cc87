"""Which TensorRT is installed, does it load, and do all versions here fit the driver and each other?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

from gacq_deploy.backends.trt.library import INSTALLS, TRT_NAMES
from gacq_deploy.doctor.ask import Reply, ask
from gacq_deploy.doctor.findings import Check
from gacq_deploy.doctor.fit import (
    Built,
    Driver,
    built_with_cuda,
    driver_misfit,
    execution_provider_misfit,
    provider_tensorrt,
    rtx_misfit,
    tensorrt_wheel_cuda,
)
from gacq_deploy.doctor.gpu import Graphics
from gacq_deploy.engines.catalogue import TrtName

_ORT_GPU = "onnxruntime-gpu"
_BUILD_INFO = {"torch": "torch/version.py", _ORT_GPU: "onnxruntime/capi/build_and_package_info.py"}
"""Distribution -> the file of it that names its CUDA version."""
_INSTALL: dict[TrtName, str] = dict(zip(TRT_NAMES, INSTALLS.splitlines(), strict=True))


def checks(graphics: Graphics) -> Iterator[Check]:
    """Load each TensorRT in a child process; say what does not fit."""
    versions: dict[TrtName, str] = {}
    for name in TRT_NAMES:
        reply = ask("tensorrt", name)
        if "version" in reply.answer:
            versions[name] = reply.answer["version"]
        yield library(name, reply, installed=_has_distribution(name))
    seen = bool(graphics.usable or graphics.listed)
    packages = built_for_cuda(versions)
    if seen and packages:
        yield fit(Driver(graphics.driver, graphics.cuda), packages, misfits(versions, graphics))


def library(name: TrtName, reply: Reply, *, installed: bool) -> Check:
    """Say whether a TensorRT library loads, and whether its builder opens."""
    version = reply.answer.get("version")
    if version is None:
        if not installed:
            return Check(name, "absent", "not installed", _INSTALL[name])
        return Check(name, "warning", f"installed, but it does not load: {reply.problem}", _INSTALL[name])
    builder = reply.answer.get("builder")
    if builder is None:
        return Check(name, "ok", f"{version}, loads; its builder needs a GPU")
    if not builder:
        return Check(name, "warning", f"{version}, loads, but its builder does not open")
    return Check(name, "ok", f"{version}, its builder opens")


def fit(driver: Driver, packages: tuple[Built, ...], others: tuple[str, ...]) -> Check:
    """Compare the driver with every package that was built for a CUDA version."""
    found = [misfit for package in packages if (misfit := driver_misfit(driver, package))]
    found += others
    if found:
        return Check(
            "nvidia versions",
            "warning",
            f"{driver}: {'; '.join(found)}",
            "Update the driver, or install what fits.",
        )
    fitting = ", ".join(f"{package.label} (CUDA {package.cuda})" for package in packages)
    return Check("nvidia versions", "ok", f"{driver} fits {fitting}")


def misfits(versions: dict[TrtName, str], graphics: Graphics) -> tuple[str, ...]:
    """Return what does not fit besides the driver."""
    capabilities = frozenset(gpu.capability for gpu in graphics.usable if gpu.capability is not None)
    wanted = _read(_ORT_GPU, "onnxruntime/capi/libonnxruntime_providers_tensorrt.so", provider_tensorrt)
    found = [execution_provider_misfit(wanted, versions.get("tensorrt"))]
    if "tensorrt-rtx" in versions and "tensorrt" not in versions:
        found.append(rtx_misfit(capabilities))
    return tuple(filter(None, found))


def built_for_cuda(versions: dict[TrtName, str]) -> tuple[Built, ...]:
    """Return the installed packages that carry code for a CUDA version; read from names and files, none imported."""
    found = []
    for name, path in _BUILD_INFO.items():
        cuda = _read(name, path, lambda raw: built_with_cuda(raw.decode(errors="replace")))
        if cuda is not None:
            found.append(Built(f"{name} {metadata.version(name)}", cuda))
    for distribution in metadata.distributions():
        wheel = tensorrt_wheel_cuda(distribution.name or "")
        if wheel is not None and wheel[0] in versions:
            found.append(Built(f"{wheel[0]} {distribution.version}", wheel[1]))
    return tuple(found)


def _read(distribution: str, path: str, read: Callable[[bytes], int | None]) -> int | None:
    """Read an installed file; None where the distribution is not installed or has no such file."""
    try:
        return read(Path(str(metadata.distribution(distribution).locate_file(path))).read_bytes())
    except (metadata.PackageNotFoundError, OSError):
        return None


def _has_distribution(name: TrtName) -> bool:
    """Tell whether a wheel of this library is installed, of whatever CUDA version."""
    rtx = name == "tensorrt-rtx"
    for distribution in metadata.distributions():
        found = (distribution.name or "").lower().replace("_", "-")
        if found.startswith("tensorrt") and found.startswith("tensorrt-rtx") == rtx:
            return True
    return False
