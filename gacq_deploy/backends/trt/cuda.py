"""Which CUDA calls does an engine need? Memory, one stream and graphs, through NVIDIA's bindings of the driver API.

The driver API is used because it comes with the driver: nothing has to match the CUDA version of TensorRT. CudaDevice,
stream and graph calls leave the caller's current device as it was.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from gacq_deploy.errors import BackendUnavailable, EngineError, GacqError, ResourceError
from gacq_deploy.spec import Array

_INSTALL = "pip install 'gacq-deploy[trt]' or 'gacq-deploy[rtx]': both bring cuda-bindings."
CUDA_DLPACK_TYPE = 2
"""DLPack's number for memory of a CUDA device (``kDLCUDA``)."""
logger = logging.getLogger(__name__)


class CudaDevice:
    """One GPU, through its primary context: the one that TensorRT and PyTorch use too.

    Memory may outlive :meth:`close`; the context is given back with the last of it.
    """

    dlpack_type = CUDA_DLPACK_TYPE

    def __init__(self, driver: Any, ordinal: int = 0) -> None:
        """Take the context of a GPU; ``driver`` is the module ``cuda.bindings.driver``, initialized."""
        self._driver = driver
        self.ordinal = ordinal
        self._handle = self.checked(driver.cuDeviceGet(ordinal))
        self.name = self._read_name()
        attribute = driver.CUdevice_attribute
        self.capability = (
            int(self._attribute(attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)),
            int(self._attribute(attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)),
        )
        self._context = self.checked(driver.cuDevicePrimaryCtxRetain(self._handle))
        self._users = 1  # whoever opened it, and every live allocation
        # reentrant: while it is held, the garbage collector may free a Memory on the same thread
        self._users_lock = threading.RLock()
        self._open = True

    @contextmanager
    def active(self) -> Iterator[None]:
        """Make this the calling thread's device for a while; CUDA and TensorRT calls stand inside."""
        self.checked(self._driver.cuCtxPushCurrent(self._context))
        try:
            yield
        finally:
            self._driver.cuCtxPopCurrent()

    def allocate(self, nbytes: int) -> Memory:
        """Return device memory, at least one byte.

        Raises:
            ResourceError: the GPU is out of memory.
        """
        with self.active():
            address = int(self.checked(self._driver.cuMemAlloc(max(nbytes, 1)), f"allocating {nbytes} bytes"))
        with self._users_lock:
            self._users += 1
        return Memory(self, address, nbytes)

    def stream(self) -> Stream:
        """Return a new stream; it does not wait for the default stream."""
        with self.active():
            return Stream(
                self,
                self.checked(self._driver.cuStreamCreate(self._driver.CUstream_flags.CU_STREAM_NON_BLOCKING)),
            )

    def wait_for(self, stream: int) -> None:
        """Wait until the work of somebody else's stream is done."""
        with self.active():
            self.checked(self._driver.cuStreamSynchronize(self._driver.CUstream(stream)))

    def close(self) -> None:
        """Give the context back, at once or when the last memory is freed."""
        if self._open:
            self._open = False
            self._leave()

    def free(self, address: int) -> None:
        """Free an allocation: :class:`Memory` calls it, once."""
        self.discard(lambda: self._driver.cuMemFree(self._driver.CUdeviceptr(address)))
        self._leave()

    def discard(self, call: Callable[[], tuple[Any, ...] | None]) -> None:
        """Release something, with the device active; a failure is logged: what broke the device was raised before."""
        try:
            with self.active():
                self.checked(call() or (0,))
        except GacqError as error:
            logger.debug("%s: not released: %s", self.name, error.message)

    def checked(self, result: tuple[Any, ...], doing: str = "a CUDA call") -> Any:
        """Return what a driver call gave.

        Raises:
            ResourceError: out of device or host memory.
            EngineError: any other CUDA error.
        """
        status = result[0]
        if int(status) == 0:
            return result[1] if len(result) > 1 else None
        where = f"GPU {self.ordinal} ({getattr(self, 'name', 'not opened')})"
        if status == self._driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            raise ResourceError(
                f"{where}: out of memory while {doing}.", "Use a smaller batch, or free memory on the GPU."
            )
        raise EngineError(
            f"{where}: {doing} failed: {_error_text(self._driver, status)}.",
            "After an illegal address or a failed launch the process must be started again.",
        )

    @property
    def driver(self) -> Any:
        """The bindings' module."""
        return self._driver

    def _leave(self) -> None:
        with self._users_lock:
            self._users -= 1
            last = self._users == 0
        if last:
            self._driver.cuDevicePrimaryCtxRelease(self._handle)

    def _attribute(self, attribute: Any) -> Any:
        return self.checked(self._driver.cuDeviceGetAttribute(attribute, self._handle))

    def _read_name(self) -> str:
        raw: bytes = self.checked(self._driver.cuDeviceGetName(128, self._handle))
        return raw.split(b"\0")[0].decode(errors="replace")


class Memory:
    """Device memory at ``address``, freed once: by :meth:`close` or with its last reference."""

    def __init__(self, device: CudaDevice, address: int, nbytes: int) -> None:
        self.address = address
        self.nbytes = nbytes
        self._free = weakref.finalize(self, device.free, address)
        self._free.atexit = False  # the driver may be gone by then, and frees everything itself

    def close(self) -> None:
        """Free it; a second call does nothing."""
        self._free()


class Stream:
    """A queue of GPU work. Every method but :meth:`close` runs with the device active."""

    def __init__(self, device: CudaDevice, stream: Any) -> None:
        self._device = device
        self._driver = device.driver
        self._stream = stream
        self.handle = int(stream)

    def copy_in(self, address: int, array: Array) -> None:
        """Copy a contiguous host array to the device; it must stay as it is until :meth:`wait`."""
        call = self._driver.cuMemcpyHtoDAsync(
            self._driver.CUdeviceptr(address), array.ctypes.data, array.nbytes, self._stream
        )
        self._device.checked(call, "copying an input to the GPU")

    def copy_out(self, array: Array, address: int) -> None:
        """Copy device memory into a contiguous host array, which is complete after :meth:`wait`."""
        call = self._driver.cuMemcpyDtoHAsync(
            array.ctypes.data, self._driver.CUdeviceptr(address), array.nbytes, self._stream
        )
        self._device.checked(call, "copying an output from the GPU")

    def copy_between(self, target: int, source: int, nbytes: int) -> None:
        """Copy from device memory to device memory."""
        call = self._driver.cuMemcpyDtoDAsync(
            self._driver.CUdeviceptr(target), self._driver.CUdeviceptr(source), nbytes, self._stream
        )
        self._device.checked(call, "copying on the GPU")

    def wait(self) -> None:
        """Wait until all work is done.

        Raises:
            EngineError: work that was queued earlier failed.
        """
        self._device.checked(self._driver.cuStreamSynchronize(self._stream), "the queued work")

    def settle(self) -> None:
        """Wait as :meth:`wait` does, for a caller that already has an error to raise."""
        self._device.discard(lambda: self._driver.cuStreamSynchronize(self._stream))

    def capture(self, work: Callable[[], None]) -> CudaGraph:
        """Record what ``work`` queues, without running it.

        Raises:
            EngineError: the work cannot be recorded, or queued nothing.
        """
        # other threads, PyTorch's among them, may allocate meanwhile without spoiling the capture
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._device.checked(
            self._driver.cuStreamBeginCapture(self._stream, mode), "starting a graph capture"
        )
        try:
            work()
        except BaseException:
            ended = self._driver.cuStreamEndCapture(self._stream)  # a capturing stream can do nothing else
            if int(ended[0]) == 0:
                self._driver.cuGraphDestroy(ended[1])
            raise
        graph = self._device.checked(self._driver.cuStreamEndCapture(self._stream), "ending a graph capture")
        try:
            # work queued for another device leaves an empty graph, which would replay without an error
            if int(self._driver.cuGraphGetNodes(graph, 0)[2]) == 0:
                raise EngineError("The captured CUDA graph is empty.", "Run without CUDA graphs.")
            return CudaGraph(
                self._device,
                self._device.checked(self._driver.cuGraphInstantiate(graph, 0), "making a graph"),
            )
        finally:
            self._driver.cuGraphDestroy(graph)

    def launch(self, graph: CudaGraph) -> None:
        """Queue a captured graph."""
        self._device.checked(self._driver.cuGraphLaunch(graph.executable, self._stream), "launching a graph")

    def close(self) -> None:
        """Destroy the stream."""
        self._device.discard(lambda: self._driver.cuStreamDestroy(self._stream))


class CudaGraph:
    """A captured sequence of GPU work, with its addresses and shapes fixed."""

    def __init__(self, device: CudaDevice, executable: Any) -> None:
        self._device = device
        self.executable = executable

    def close(self) -> None:
        """Destroy the graph."""
        self._device.discard(lambda: self._device.driver.cuGraphExecDestroy(self.executable))


def open_device(ordinal: int = 0) -> CudaDevice:
    """Open a GPU by its number.

    Raises:
        BackendUnavailable: cuda-bindings, the driver or that GPU is missing.
    """
    try:
        driver = import_module("cuda.bindings.driver")  # loads without a driver
    except (ImportError, OSError) as error:
        raise BackendUnavailable(f"cuda-bindings is not available: {error}.", _INSTALL) from error
    return device_of(driver, ordinal)


def device_of(driver: Any, ordinal: int = 0) -> CudaDevice:
    """Initialize the driver and open a GPU.

    Raises:
        BackendUnavailable: the driver or that GPU is missing.
    """
    hint = "A TensorRT engine runs on an NVIDIA GPU with its driver; `gacq-deploy doctor` shows what is here."
    try:
        status = driver.cuInit(0)[0]
    except RuntimeError as error:
        raise BackendUnavailable("No NVIDIA driver is installed.", hint) from error
    if int(status) != 0:
        raise BackendUnavailable(f"CUDA does not start: {_error_text(driver, status)}.", hint)
    count = int(driver.cuDeviceGetCount()[1])
    if not 0 <= ordinal < count:
        raise BackendUnavailable(f"GPU {ordinal} was asked for; this machine has {count}.", hint)
    return CudaDevice(driver, ordinal)


def _error_text(driver: Any, status: Any) -> str:
    name = driver.cuGetErrorName(status)
    text = driver.cuGetErrorString(status)
    if int(name[0]) != 0 or int(text[0]) != 0:
        return f"CUDA error {int(status)}"
    return f"{name[1].decode()}: {text[1].decode()}"
