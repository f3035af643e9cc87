"""A CUDA driver on host memory that does what it is told and forgives nothing.

Device memory is host memory with real addresses, so DLPack consumers can really read it. Queued work runs when its
stream is waited for and not before; freed memory is never given out again, so that a use after free is always seen.
What the real driver would answer with an error, this one does too. What would be undefined there is kept in
``misuse`` and raised.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum

import numpy as np

from gacq_deploy.backends.trt.cuda import CudaDevice

ALIGNMENT = 256


class CUresult(IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_INVALID_CONTEXT = 201
    CUDA_ERROR_INVALID_HANDLE = 400
    CUDA_ERROR_ILLEGAL_ADDRESS = 700
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901


class CUdevice_attribute(IntEnum):  # noqa: N801 (the driver's name)
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76


class CUstream_flags(IntEnum):  # noqa: N801 (the driver's name)
    CU_STREAM_NON_BLOCKING = 1


class CUstreamCaptureMode(IntEnum):
    CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1


class FakeMisuse(AssertionError):
    """Something whose result would be undefined on a GPU."""


class FakeFault(Exception):
    """Queued work read or wrote memory that is not there."""


Work = Callable[[], None]
OK = CUresult.CUDA_SUCCESS


class FakeDriver:
    """Stands for the module ``cuda.bindings.driver``; the public methods have its names and forms."""

    CUresult = CUresult
    CUdevice_attribute = CUdevice_attribute
    CUstream_flags = CUstream_flags
    CUstreamCaptureMode = CUstreamCaptureMode
    CUdeviceptr = int
    CUstream = int

    def __init__(
        self, *, capability: tuple[int, int] = (8, 6), memory: int = 1 << 26, devices: int = 1
    ) -> None:
        self.capability = capability
        self.memory = memory
        self.devices = devices
        self.misuse: list[str] = []
        self.calls: list[str] = []
        self.events: list[str] = []
        self.failing: dict[str, CUresult] = {}
        """Name of a call -> the error that it gives next, once."""
        self._initialized = False
        self._retained = 0
        self._broken = False
        self._handles = iter(range(0x1000, 0xFFFFF))
        self._current = threading.local()
        self._allocations: dict[int, np.ndarray] = {}
        self._freed: list[np.ndarray] = []
        self._lent: dict[int, np.ndarray] = {}
        self._queues: dict[int, list[Work]] = {}
        self._captures: dict[int, list[Work] | None] = {}
        self._graphs: dict[int, list[Work]] = {}
        self._executables: dict[int, list[Work]] = {}

    # what tests ask

    def live(self) -> dict[str, int]:
        """Count what was not given back."""
        counts = {
            "memory": len(self._allocations),
            "streams": len(self._queues),
            "graphs": len(self._graphs) + len(self._executables),
            "contexts": self._retained,
        }
        return {name: n for name, n in counts.items() if n}

    def count(self, call: str) -> int:
        """Count calls of a name."""
        return self.calls.count(call)

    def lend(self, array: np.ndarray) -> np.ndarray:
        """Treat a numpy array as device memory of somebody else."""
        self._lent[array.ctypes.data] = array
        return array

    # what the fake TensorRT uses

    def complain(self, text: str) -> FakeMisuse:
        """Keep a misuse and return the error to raise."""
        self.misuse.append(text)
        return FakeMisuse(text)

    def require_current(self, what: str) -> None:
        """Require that the calling thread has a device."""
        if not self._initialized or not self._stack():
            raise self.complain(f"{what} without a current device")

    def view(self, address: int, nbytes: int) -> np.ndarray:
        """Return memory as bytes; it must lie within one live allocation."""
        for start, data in [*self._allocations.items(), *((a, d) for a, d in self._lent.items())]:
            if start <= address and address + nbytes <= start + data.nbytes:
                raw = (ctypes.c_uint8 * nbytes).from_address(address)
                return np.frombuffer(raw, np.uint8)
        raise FakeFault(f"{nbytes} bytes at {address:#x} are not allocated")

    def queue(self, stream: int, work: Work) -> None:
        """Queue work, or record it."""
        if stream not in self._queues:
            raise self.complain(f"work queued on stream {stream:#x}, which does not exist")
        if stream in self._captures:
            recorded = self._captures[stream]
            if recorded is not None:
                recorded.append(work)
        else:
            self._queues[stream].append(work)

    def capturing(self, stream: int) -> bool:
        """Tell whether work on a stream is being recorded."""
        return stream in self._captures

    def spoil_capture(self, stream: int) -> None:
        """Make a capture fail, as a call that is not allowed in it does."""
        self._captures[stream] = None

    # the driver API

    def cuInit(self, flags: int) -> tuple[CUresult]:  # noqa: N802 (the driver's names, here and below)
        if not self.devices:
            return (CUresult.CUDA_ERROR_NO_DEVICE,)
        self._initialized = True
        return (OK,)

    def cuDeviceGetCount(self) -> tuple[CUresult, int]:  # noqa: N802
        return OK, self.devices

    def cuDeviceGet(self, ordinal: int) -> tuple[CUresult, int]:  # noqa: N802
        return OK, ordinal

    def cuDeviceGetName(self, length: int, device: int) -> tuple[CUresult, bytes]:  # noqa: N802
        return OK, b"Fake GPU".ljust(length, b"\0")

    def cuDeviceGetAttribute(self, attribute: int, device: int) -> tuple[CUresult, int]:  # noqa: N802
        return OK, self.capability[
            attribute - CUdevice_attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
        ]

    def cuDevicePrimaryCtxRetain(self, device: int) -> tuple[CUresult, int]:  # noqa: N802
        self._retained += 1
        return OK, 0xC0

    def cuDevicePrimaryCtxRelease(self, device: int) -> tuple[CUresult]:  # noqa: N802
        self.events.append("device")
        if (self._allocations or self._queues) and not self._broken:
            raise self.complain("the context was given back while its memory or streams live")
        self._retained -= 1
        return (OK,)

    def cuCtxPushCurrent(self, context: int) -> tuple[CUresult]:  # noqa: N802
        if not self._retained:
            raise self.complain("a context was used after it was given back")
        self._stack().append(context)
        return (OK,)

    def cuCtxPopCurrent(self) -> tuple[CUresult, int]:  # noqa: N802
        return OK, self._stack().pop()

    def cuMemAlloc(self, nbytes: int) -> tuple[CUresult, int]:  # noqa: N802
        status = self._begin("cuMemAlloc", in_capture=False)
        if status == OK and sum(a.nbytes for a in self._allocations.values()) + nbytes > self.memory:
            status = CUresult.CUDA_ERROR_OUT_OF_MEMORY
        if status != OK:
            return status, 0
        whole = np.full(nbytes + ALIGNMENT, 0xFF, np.uint8)  # NaN in every float type
        offset = -whole.ctypes.data % ALIGNMENT
        data = whole[offset : offset + nbytes]
        self._allocations[data.ctypes.data] = data
        return OK, data.ctypes.data

    def cuMemFree(self, address: int) -> tuple[CUresult]:  # noqa: N802
        status = self._begin("cuMemFree", in_capture=False)
        if status != OK:
            return (status,)
        if address not in self._allocations:
            raise self.complain(f"{address:#x} was freed twice, or was never allocated")
        self.events.append("memory")
        self._freed.append(self._allocations.pop(address))
        return (OK,)

    def cuMemcpyHtoDAsync(self, target: int, source: int, nbytes: int, stream: int) -> tuple[CUresult]:  # noqa: N802
        return self._copy("cuMemcpyHtoDAsync", target, source, nbytes, stream)

    def cuMemcpyDtoHAsync(self, target: int, source: int, nbytes: int, stream: int) -> tuple[CUresult]:  # noqa: N802
        return self._copy("cuMemcpyDtoHAsync", target, source, nbytes, stream)

    def cuMemcpyDtoDAsync(self, target: int, source: int, nbytes: int, stream: int) -> tuple[CUresult]:  # noqa: N802
        return self._copy("cuMemcpyDtoDAsync", target, source, nbytes, stream)

    def cuStreamCreate(self, flags: int) -> tuple[CUresult, int]:  # noqa: N802
        status = self._begin("cuStreamCreate")
        handle = next(self._handles)
        if status == OK:
            self._queues[handle] = []
        return status, handle

    def cuStreamSynchronize(self, stream: int) -> tuple[CUresult]:  # noqa: N802
        status = self._begin("cuStreamSynchronize")
        if stream in self._captures:
            self.spoil_capture(stream)
            return (CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,)
        if status == OK and stream in self._queues:
            pending, self._queues[stream] = self._queues[stream], []
            try:
                for work in pending:
                    work()
            except FakeFault as fault:
                self.misuse.append(str(fault))
                self._broken = True
                status = CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
        return (status,)

    def cuStreamDestroy(self, stream: int) -> tuple[CUresult]:  # noqa: N802
        self._begin("cuStreamDestroy")
        if self._queues.pop(stream, None):
            raise self.complain("a stream was destroyed with work in it")
        self.events.append("stream")
        return (OK,)

    def cuStreamBeginCapture(self, stream: int, mode: int) -> tuple[CUresult]:  # noqa: N802
        status = self._begin("cuStreamBeginCapture")
        if status == OK:
            self._captures[stream] = []
        return (status,)

    def cuStreamEndCapture(self, stream: int) -> tuple[CUresult, int]:  # noqa: N802
        self.calls.append("cuStreamEndCapture")
        if stream not in self._captures:
            return CUresult.CUDA_ERROR_INVALID_VALUE, 0
        recorded = self._captures.pop(stream)
        status = self.failing.pop("cuStreamEndCapture", OK)
        if recorded is None or status != OK:
            return status or CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, 0
        handle = next(self._handles)
        self._graphs[handle] = recorded
        return OK, handle

    def cuGraphGetNodes(self, graph: int, count: int) -> tuple[CUresult, list[int], int]:  # noqa: N802
        return OK, [], len(self._graphs[graph])

    def cuGraphInstantiate(self, graph: int, flags: int) -> tuple[CUresult, int]:  # noqa: N802
        status = self._begin("cuGraphInstantiate")
        handle = next(self._handles)
        if status == OK:
            self._executables[handle] = list(self._graphs[graph])
        return status, handle

    def cuGraphDestroy(self, graph: int) -> tuple[CUresult]:  # noqa: N802
        del self._graphs[graph]
        return (OK,)

    def cuGraphLaunch(self, executable: int, stream: int) -> tuple[CUresult]:  # noqa: N802
        status = self._begin("cuGraphLaunch")
        if executable not in self._executables:
            raise self.complain("a graph was launched after it was destroyed")
        for work in self._executables[executable]:
            self.queue(stream, work)
        return (status,)

    def cuGraphExecDestroy(self, executable: int) -> tuple[CUresult]:  # noqa: N802
        self._begin("cuGraphExecDestroy")
        if self._executables.pop(executable, None) is None:
            raise self.complain("a graph was destroyed twice")
        self.events.append("graph")
        return (OK,)

    def cuGetErrorName(self, status: int) -> tuple[CUresult, bytes]:  # noqa: N802
        return OK, CUresult(status).name.encode()

    def cuGetErrorString(self, status: int) -> tuple[CUresult, bytes]:  # noqa: N802
        return OK, CUresult(status).name.removeprefix("CUDA_ERROR_").replace("_", " ").lower().encode()

    def _stack(self) -> list[int]:
        if not hasattr(self._current, "stack"):
            self._current.stack = []
        stack: list[int] = self._current.stack
        return stack

    def _begin(self, name: str, *, in_capture: bool = True) -> CUresult:
        self.calls.append(name)
        if not self._initialized or not self._stack():
            return CUresult.CUDA_ERROR_INVALID_CONTEXT
        if self._broken:
            return CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
        if not in_capture and self._captures:
            for stream in self._captures:
                self.spoil_capture(stream)
            return CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
        return self.failing.pop(name, OK)

    def _copy(self, name: str, target: int, source: int, nbytes: int, stream: int) -> tuple[CUresult]:
        status = self._begin(name)
        if status != OK:
            return (status,)

        def work() -> None:
            into = self._host(target, nbytes) if name == "cuMemcpyDtoHAsync" else self.view(target, nbytes)
            into[:] = self._host(source, nbytes) if name == "cuMemcpyHtoDAsync" else self.view(source, nbytes)

        self.queue(stream, work)
        return (OK,)

    @staticmethod
    def _host(address: int, nbytes: int) -> np.ndarray:
        return np.frombuffer((ctypes.c_uint8 * nbytes).from_address(address), np.uint8)


class HostDevice(CudaDevice):
    """A device whose memory DLPack consumers on the CPU can read, since it is the host's."""

    dlpack_type = 1


@contextmanager
def fake_driver(*, capability: tuple[int, int] = (8, 6), memory: int = 1 << 26) -> Iterator[FakeDriver]:
    """Yield a driver; afterwards nothing may be left and nothing may have been misused."""
    driver = FakeDriver(capability=capability, memory=memory)
    yield driver
    assert driver.misuse == []
    assert driver.live() == {}


def fake_device(driver: FakeDriver) -> HostDevice:
    """Return the device of a fake driver."""
    driver.cuInit(0)
    return HostDevice(driver)
