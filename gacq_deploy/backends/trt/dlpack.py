"""How do tensors cross between this package and PyTorch, CuPy or JAX without a copy through the host?

DLPack, both ways: an address with its type and shape in a capsule (dmlc.github.io/dlpack). The CUDA array interface is
read too. No library is used: NVIDIA's ``cuda.core`` would bring 18 MB and needs a driver even to export.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from gacq_deploy.backends.trt.cuda import CUDA_DLPACK_TYPE, CudaDevice, Memory
from gacq_deploy.errors import BackendUnavailable, EngineError
from gacq_deploy.spec import Array

_MANAGED_DLPACK_TYPE = 13  # CUDA memory that the host can read too
_NAME = b"dltensor"
_CODES = {
    "float32": (2, 32),
    "float16": (2, 16),
    "bfloat16": (4, 16),
    "int64": (0, 64),
    "int32": (0, 32),
    "int8": (0, 8),
    "uint8": (1, 8),
    "bool": (6, 8),
}
"""numpy dtype name -> DLPack's (type code, bits)."""
_DTYPES = {code: name for name, code in _CODES.items()}


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the numpy dtype of a name; ``bfloat16`` comes from ml_dtypes.

    Raises:
        BackendUnavailable: ml_dtypes is not installed.
    """
    if name != "bfloat16":
        return np.dtype(name)
    try:
        from ml_dtypes import bfloat16
    except ImportError as error:
        raise BackendUnavailable(
            "numpy has no bfloat16 and ml_dtypes is missing.", "pip install ml_dtypes"
        ) from error
    dtype: np.dtype[Any] = np.dtype(bfloat16)
    return dtype


@dataclass(frozen=True)
class Borrowed:
    """Somebody else's contiguous device tensor; ``owner`` keeps it alive."""

    address: int
    dtype: str
    shape: tuple[int, ...]
    owner: Any = field(repr=False)

    @property
    def nbytes(self) -> int:
        """Size of the tensor."""
        return prod(self.shape) * numpy_dtype(self.dtype).itemsize


class DeviceTensor:
    """A result in device memory, ready on every stream: ``torch.from_dlpack(tensor)`` takes it without a copy."""

    def __init__(self, device: CudaDevice, memory: Memory, dtype: str, shape: tuple[int, ...]) -> None:
        self._device = device
        self._memory = memory
        self.dtype = dtype
        self.shape = shape

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device.dlpack_type, self._device.ordinal

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        # the work is done, so any stream may read; and every consumer takes the first version of the protocol
        if copy or (dl_device is not None and tuple(dl_device) != self.__dlpack_device__()):
            raise BufferError("This tensor is handed over where it is, without a copy.")
        return _export(self)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        if self.dtype == "bfloat16":
            raise AttributeError("The CUDA array interface has no bfloat16; use DLPack.")
        return {
            "shape": self.shape,
            "typestr": numpy_dtype(self.dtype).str,
            "data": (self._memory.address, False),
            "version": 3,
            "strides": None,
            "stream": None,
        }

    def numpy(self) -> Array:
        """Return a copy on the host."""
        array = np.empty(self.shape, numpy_dtype(self.dtype))
        stream = self._device.stream()
        try:
            with self._device.active():
                stream.copy_out(array, self._memory.address)
                stream.wait()
        finally:
            stream.close()
        return array

    @property
    def address(self) -> int:
        """Where it lies."""
        return self._memory.address


def borrow(name: str, tensor: Any, device: CudaDevice, stream: int) -> Borrowed:
    """Read where a device tensor lies; work queued on ``stream`` afterwards sees its final values.

    Raises:
        EngineError: not a device tensor, on another device, not contiguous, or of a type without a numpy name.
    """
    if hasattr(tensor, "__dlpack__") and hasattr(tensor, "__dlpack_device__"):
        try:
            place = tensor.__dlpack_device__()
        except (RuntimeError, ValueError) as error:
            raise EngineError(
                f"Input '{name}' is not on a device: {error}.", "Move it to the GPU."
            ) from error
        _require_device(name, place, device)
        # a stream means something on CUDA only; tests borrow host memory
        return _from_dlpack(name, tensor, stream if device.dlpack_type == CUDA_DLPACK_TYPE else None)
    if hasattr(tensor, "__cuda_array_interface__"):
        return _from_array_interface(name, tensor, device)
    raise EngineError(
        f"Input '{name}' is {type(tensor).__name__}, not a device tensor.",
        "Pass an object with __dlpack__ or __cuda_array_interface__, or host arrays to `run`.",
    )


def _require_device(name: str, found: tuple[Any, Any], device: CudaDevice) -> None:
    kind, ordinal = int(found[0]), int(found[1])
    kinds = {device.dlpack_type} | (
        {_MANAGED_DLPACK_TYPE} if device.dlpack_type == CUDA_DLPACK_TYPE else set()
    )
    if kind not in kinds or ordinal != device.ordinal:
        raise EngineError(
            f"Input '{name}' is on DLPack device {(kind, ordinal)}, the engine on"
            f" {(device.dlpack_type, device.ordinal)}.",
            "Move it to the engine's GPU.",
        )


def _from_dlpack(name: str, tensor: Any, stream: int | None) -> Borrowed:
    try:
        capsule = tensor.__dlpack__(stream=stream)
    except (BufferError, RuntimeError, TypeError) as error:
        raise EngineError(
            f"Input '{name}' cannot be read: {error}.", "Detach it from autograd first."
        ) from error
    view = ctypes.cast(_get_pointer(capsule, _NAME), ctypes.POINTER(_ManagedTensor)).contents.tensor
    shape = tuple(view.shape[i] for i in range(view.ndim))
    dtype = _DTYPES.get((view.dtype.code, view.dtype.bits)) if view.dtype.lanes == 1 else None
    if dtype is None:
        raise EngineError(
            f"Input '{name}' has DLPack type (code {view.dtype.code}, {view.dtype.bits} bits).",
            f"The types known are {', '.join(_CODES)}.",
        )
    strides: tuple[int, ...] | None = None  # DLPack's way to say contiguous
    if view.strides:
        strides = tuple(view.strides[i] for i in range(view.ndim))
    _require_contiguous(name, shape, strides)
    return Borrowed((view.data or 0) + view.byte_offset, dtype, shape, capsule)


def _from_array_interface(name: str, tensor: Any, device: CudaDevice) -> Borrowed:
    facts = tensor.__cuda_array_interface__
    dtype, shape = np.dtype(facts["typestr"]), tuple(int(n) for n in facts["shape"])
    strides = facts.get("strides")
    if strides is not None:
        strides = tuple(s // dtype.itemsize for s in strides)  # in bytes; DLPack counts elements
    _require_contiguous(name, shape, strides)
    if facts.get("stream") is not None:
        device.wait_for(int(facts["stream"]))
    return Borrowed(int(facts["data"][0]), dtype.name, shape, tensor)


def _require_contiguous(name: str, shape: tuple[int, ...], strides: tuple[int, ...] | None) -> None:
    pairs = zip(shape, strides or _strides(shape), _strides(shape), strict=True)
    # the stride of an axis with one element is never used, and libraries set it as they like
    if any(n > 1 and found != wanted for n, found, wanted in pairs):
        raise EngineError(
            f"Input '{name}' of shape {list(shape)} has strides {list(strides or ())}.",
            "Make it contiguous, rows first (torch: tensor.contiguous()).",
        )


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(prod(shape[i + 1 :]) for i in range(len(shape)))


class _DlDevice(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int32), ("ordinal", ctypes.c_int32))


class _DlType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _DlDevice),
        ("ndim", ctypes.c_int32),
        ("dtype", _DlType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _ManagedTensor(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))


_get_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_new_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)
# inside the capsule's destructor its reference count is 0: it must stay a bare pointer there
_raw_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_raw_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi)
)
_exported: dict[int, tuple[Any, ...]] = {}
"""What consumers still use, by the address of its record: their deleter call takes it out."""


def _delete(record: int | None) -> None:
    if record is not None:
        _exported.pop(record, None)


def _destroy_capsule(capsule: int | None) -> None:
    # consumers rename what they take: under its own name nobody took it
    if capsule is not None and _raw_is_valid(capsule, _NAME):
        _delete(_raw_pointer(capsule, _NAME))


# the C side keeps only addresses of these, so they live as long as the module
_DELETE = _Deleter(_delete)
_DESTROY = _Deleter(_destroy_capsule)


def _export(tensor: DeviceTensor) -> Any:
    shape = (ctypes.c_int64 * len(tensor.shape))(*tensor.shape)
    strides = (ctypes.c_int64 * len(tensor.shape))(*_strides(tensor.shape))
    code, bits = _CODES[tensor.dtype]
    kind, ordinal = tensor.__dlpack_device__()
    pointer = ctypes.POINTER(ctypes.c_int64)
    record = _ManagedTensor(
        _Tensor(
            tensor.address,
            _DlDevice(kind, ordinal),
            len(tensor.shape),
            _DlType(code, bits, 1),
            ctypes.cast(shape, pointer),
            ctypes.cast(strides, pointer),
            0,
        ),
        None,
        _DELETE,
    )
    address = ctypes.addressof(record)
    _exported[address] = (record, shape, strides, tensor)
    return _new_capsule(address, _NAME, ctypes.cast(_DESTROY, ctypes.c_void_p))
