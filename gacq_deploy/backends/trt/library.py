"""Which TensorRT is here? Two libraries with one API: `tensorrt` for production, `tensorrt-rtx` anywhere."""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, get_args

from gacq_deploy.engines.catalogue import TrtName
from gacq_deploy.errors import BackendUnavailable

TRT_NAMES: tuple[TrtName, ...] = get_args(TrtName)
_OLDEST: dict[TrtName, tuple[int, int]] = {"tensorrt": (10, 16), "tensorrt-rtx": (1, 7)}
"""The first versions whose API this package was written against."""
INSTALLS = (
    "pip install 'gacq-deploy[trt]'    (TensorRT: builds and runs on the GPU it is built for)\n"
    "pip install 'gacq-deploy[rtx]'    (TensorRT-RTX: builds without a GPU, runs on RTX GPUs)"
)
_CAPABILITY = (75, 76)
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR."""
# the two wheels of TensorRT-RTX can be installed without their small front package
_MODULES: dict[TrtName, tuple[str, ...]] = {
    "tensorrt": ("tensorrt",),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}


@dataclass(frozen=True)
class Device:
    """A CUDA device: its name, compute capability (``8.6``) and the driver's CUDA version (``13000`` is 13.0)."""

    name: str
    compute_capability: str
    driver: int


@dataclass(frozen=True)
class TrtLibrary:
    """A loaded library: ``module`` is its Python API, the same names for both but for a few."""

    name: TrtName
    module: Any
    version: str

    @property
    def major(self) -> int:
        """Major version."""
        return int(self.version.split(".")[0])

    @property
    def label(self) -> str:
        """``tensorrt-rtx-1.7.1.116``, for reports and manifests."""
        return f"{self.name}-{self.version}"

    @property
    def network_flags(self) -> int:
        """Flags of ``create_network``: TensorRT 10 has to know that types are the graph's, later ones always do."""
        if self.name == "tensorrt-rtx" or self.major >= 11:
            return 0
        return 1 << int(self.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def load_trt(name: TrtName) -> TrtLibrary:
    """Import a TensorRT library.

    Raises:
        BackendUnavailable: not installed, its shared objects do not load, or it is too old; names both installs.
    """
    problems = []
    for module_name in _MODULES[name]:
        try:
            module = import_module(module_name)
        except Exception as error:  # noqa: BLE001 (what a broken library raises on import is its own affair)
            problems.append(str(error).splitlines()[0] if str(error) else type(error).__name__)
            continue
        return _checked(TrtLibrary(name, module, str(getattr(module, "__version__", "of no version"))))
    raise BackendUnavailable(f"{name} is not available: {problems[0]}.", INSTALLS)


def choose_backend(asked: str = "auto") -> TrtName:
    """Return the library to use; ``auto`` is `tensorrt` where it and a device are present, else `tensorrt-rtx`."""
    for name in TRT_NAMES:
        if asked == name:
            return name
    return "tensorrt" if has_device() and find_spec("tensorrt") is not None else "tensorrt-rtx"


def choose_trt(asked: str = "auto") -> TrtLibrary:
    """Load the library of :func:`choose_backend`; errors as for :func:`load_trt`."""
    return load_trt(choose_backend(asked))


def has_device() -> bool:
    """Tell whether a CUDA device can be used."""
    return current_device() is not None


def require_device() -> None:
    """Refuse to go on where no engine can run.

    Raises:
        BackendUnavailable: there is no CUDA device.
    """
    if not has_device():
        raise BackendUnavailable(
            "There is no NVIDIA GPU with a driver here to run an engine on.",
            "Run it on the machine that it was built for; `gacq-deploy doctor` shows what is here.",
        )


def current_device() -> Device | None:
    """Return the first CUDA device, asked of the driver itself: no CUDA package is needed to see that there is none."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None  # the library comes with the driver
    handle, version = ctypes.c_int(0), ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGet(ctypes.byref(handle), 0) != 0:
        return None
    driver.cuDriverGetVersion(ctypes.byref(version))
    name, (major, minor) = read_gpu(driver, handle)
    return Device(name, f"{major}.{minor}", version.value)


def read_gpu(driver: Any, handle: ctypes.c_int) -> tuple[str, tuple[int, int]]:
    """Return name and compute capability of a device of ``libcuda``, loaded by ctypes and initialized."""
    name = ctypes.create_string_buffer(128)
    driver.cuDeviceGetName(name, len(name), handle)
    numbers = []
    for attribute in _CAPABILITY:
        value = ctypes.c_int(0)
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, handle)
        numbers.append(value.value)
    return name.value.decode(errors="replace"), (numbers[0], numbers[1])


def _checked(library: TrtLibrary) -> TrtLibrary:
    oldest = _OLDEST[library.name]
    numbers = re.match(r"([0-9]+)\.([0-9]+)", library.version)
    if numbers is None or (int(numbers[1]), int(numbers[2])) < oldest:
        raise BackendUnavailable(
            f"{library.label} does not serve; {'.'.join(map(str, oldest))} or newer is needed.", INSTALLS
        )
    return library
