"""What do NVIDIA's libraries say of themselves?

`python -m gacq_deploy.doctor.probe QUESTION [ARGUMENT]` prints one JSON object; :mod:`gacq_deploy.doctor.ask` runs it.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable
from typing import Any

from gacq_deploy.backends.trt.library import TRT_NAMES, has_device, load_trt, read_gpu
from gacq_deploy.doctor.graph import one_node_graph
from gacq_deploy.engines.attributes import import_attribute
from gacq_deploy.errors import GacqError


def read_driver(driver: Any) -> dict[str, Any]:
    """Ask ``libcuda``, loaded by ctypes, for its CUDA version and its devices.

    ``cuda`` is [major, minor]; a device has ``name``, ``capability`` [major, minor] and ``memory`` in bytes.
    """
    number = ctypes.c_int(0)
    found: dict[str, Any] = {"cuda": None, "devices": []}
    if driver.cuDriverGetVersion(ctypes.byref(number)) == 0:
        found["cuda"] = [number.value // 1000, number.value % 1000 // 10]
    status = driver.cuInit(0)
    if status != 0:
        return found | {"problem": f"CUDA does not start: {_cuda_error(driver, status)}"}
    if driver.cuDeviceGetCount(ctypes.byref(number)) == 0:
        found["devices"] = [_device(driver, index) for index in range(number.value)]
    return found


def _device(driver: Any, index: int) -> dict[str, Any]:
    handle, memory = ctypes.c_int(0), ctypes.c_size_t(0)
    driver.cuDeviceGet(ctypes.byref(handle), index)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), handle)
    name, capability = read_gpu(driver, handle)
    return {"name": name, "capability": list(capability), "memory": memory.value}


def _cuda_error(driver: Any, status: int) -> str:
    text = ctypes.c_char_p()
    if driver.cuGetErrorName(status, ctypes.byref(text)) == 0 and text.value:
        return f"{text.value.decode(errors='replace')} ({status})"
    return f"error {status}"


def _cuda() -> dict[str, Any]:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return {"absent": True}
    return read_driver(driver)


def read_nvml() -> dict[str, Any]:
    """Ask NVML, the driver's own management library, for the driver's version and its GPUs.

    ``driver`` is None where it does not tell; a device has ``name``, ``capability`` [major, minor] or None, and
    ``memory`` in bytes or None (a Jetson's is not its own). ``absent`` where no driver brought the library.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError_LibraryNotFound:
        return {"absent": True}
    except pynvml.NVMLError as error:
        return {"problem": str(error)}
    found: dict[str, Any] = {"driver": _told(pynvml.nvmlSystemGetDriverVersion), "devices": []}
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        found["devices"] = [_listed(handle) for handle in handles]
    except pynvml.NVMLError as error:
        found["problem"] = str(error)
    return found


def _listed(handle: Any) -> dict[str, Any]:
    import pynvml

    memory = _told(pynvml.nvmlDeviceGetMemoryInfo, handle)
    return {
        "name": pynvml.nvmlDeviceGetName(handle),
        "capability": _told(pynvml.nvmlDeviceGetCudaComputeCapability, handle),
        "memory": None if memory is None else memory.total,
    }


def _told(question: Callable[..., Any], *arguments: Any) -> Any:
    """Return NVML's answer, None where the driver or the GPU has none."""
    import pynvml

    try:
        return question(*arguments)
    except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound):
        return None


def _tensorrt(name: str) -> dict[str, Any]:
    """Load the library, and open a builder where that needs no driver or has one."""
    library = load_trt(next(known for known in TRT_NAMES if known == name))
    answer: dict[str, Any] = {"version": library.version, "builder": None}
    if name == "tensorrt-rtx" or has_device():
        trt = library.module
        answer["builder"] = trt.Builder(trt.Logger(trt.Logger.ERROR)) is not None
    return answer


def _provider(name: str) -> dict[str, Any]:
    opens = import_attribute("gacq_deploy.backends.ort:opens_on", what="ONNX Runtime", hint="")
    return {"opens": opens(name, one_node_graph())}


_QUESTIONS: dict[str, Callable[..., dict[str, Any]]] = {
    "nvml": read_nvml,
    "cuda": _cuda,
    "tensorrt": _tensorrt,
    "provider": _provider,
}


def main(question: str, *arguments: str) -> dict[str, Any]:
    """Answer one question; ``problem`` in the answer is what a library raised."""
    try:
        return _QUESTIONS[question](*arguments)
    except GacqError as error:
        return {"problem": error.message}
    except Exception as error:  # noqa: BLE001 (NVIDIA's bindings raise plain RuntimeErrors and TypeErrors)
        return {"problem": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(main(*sys.argv[1:])) + "\n")
    sys.stdout.flush()
