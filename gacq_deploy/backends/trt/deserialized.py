"""May this engine run here, and what does it hold? Everything that can be refused is refused before deserialization."""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from gacq_deploy.backends.base import TensorInfo
from gacq_deploy.backends.trt.cuda import CudaDevice
from gacq_deploy.backends.trt.library import TrtLibrary
from gacq_deploy.backends.trt.profiles import Profile, Range
from gacq_deploy.engines.catalogue import TrtName
from gacq_deploy.errors import ArtifactError, BackendUnavailable, EngineError, GacqError, ResourceError
from gacq_deploy.storage.memory import says_no_memory

_REBUILD = "Run `gacq-deploy build-trt` on this machine."
_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT64": "int64",
    "INT32": "int32",
    "INT8": "int8",
    "UINT8": "uint8",
    "BOOL": "bool",
}
"""TensorRT's DataType -> numpy dtype name."""
_MACHINE_FAULTS = frozenset({"OLD_CUDA_DRIVER", "OLD_CUDA_RUNTIME", "CUDA_ERROR"})
"""What TensorRT-RTX says against an engine that building it again would not mend."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Expected:
    """What the engine was built for, as its manifest says.

    ``compute_capabilities`` are texts as ``8.6``; None means that the engine is not bound to listed GPUs. A
    ``version_compatible`` engine carries host code of its own and runs on later versions of the same major one.
    """

    library: TrtName
    version: str
    compute_capabilities: tuple[str, ...] | None = None
    version_compatible: bool = False

    @property
    def label(self) -> str:
        """``tensorrt-10.16.1.11``."""
        return f"{self.library}-{self.version}"


class Messages:
    """The last errors that the library logged."""

    def __init__(self) -> None:
        # bounded: one logger serves a process to its end
        self._errors: deque[str] = deque(maxlen=20)

    def add(self, severity: str, text: str) -> None:
        """Keep an error; pass everything but chatter on to Python's logging."""
        if severity in ("ERROR", "INTERNAL_ERROR"):
            self._errors.append(text)
        level = {"VERBOSE": None, "INFO": logging.DEBUG, "WARNING": logging.INFO}.get(
            severity, logging.WARNING
        )
        if level is not None:
            logger.log(level, "TensorRT: %s", text)

    def clear(self) -> None:
        """Forget what was logged so far."""
        self._errors.clear()

    def failure(self, message: str, hint: str) -> GacqError:
        """Return the error to raise, with the last thing that the library said about it."""
        reason = self._errors[-1].strip()[:500] if self._errors else "it gave no reason"
        text = f"{message}: {reason}"
        if says_no_memory(reason):
            return ResourceError(text, "Use a smaller batch, or free memory on the GPU.")
        return EngineError(text, hint)


class DeserializedEngine:
    """A deserialized engine.

    What belongs to the library is an attribute and never a local variable: an error's traceback would keep it alive
    past the device that it needs to be destroyed on.
    """

    def __init__(self, library: TrtLibrary) -> None:
        self.library = library
        trt_logger, self.messages = library_logger(library)
        self._logger = trt_logger
        self.runtime: Any = None
        self.engine: Any = None
        self.inputs: tuple[TensorInfo, ...] = ()
        self.outputs: tuple[TensorInfo, ...] = ()
        self.profiles: tuple[Profile, ...] = ()

    def load(self, path: Path, *, allow_host_code: bool) -> None:
        """Deserialize an engine on the calling thread's active device.

        Raises:
            ArtifactError: the file is missing, or the library says that it is not valid here.
            BackendUnavailable: the driver is too old for it.
            EngineError: the library refuses it, or its tensors are of a kind that this runtime does not serve.
            ResourceError: out of memory.
        """
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ArtifactError(f"{path}: the engine cannot be read: {error.strerror}.", _REBUILD) from error
        label = self.library.label
        self.messages.clear()
        self.runtime = self.library.module.Runtime(self._logger)
        if self.runtime is None:
            raise self.messages.failure(f"{label} does not start", "Run `gacq-deploy doctor`.")
        if allow_host_code:
            self.runtime.engine_host_code_allowed = True
        # only TensorRT-RTX has it; TensorRT refuses while it deserializes
        if hasattr(self.runtime, "get_engine_validity"):
            _require_valid(self.runtime.get_engine_validity(data), self.library, self.messages, path)
        self.engine = self.runtime.deserialize_cuda_engine(data)
        if self.engine is None:
            raise self.messages.failure(f"{path}: {label} does not load the engine", _REBUILD)
        names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        self.inputs = tuple(self._info(name, path) for name in names if self._is_input(name))
        self.outputs = tuple(self._info(name, path) for name in names if not self._is_input(name))
        self.profiles = tuple(self._profile(index) for index in range(self.engine.num_optimization_profiles))

    def close(self) -> None:
        """Let go of the engine, then of its runtime; the device is active."""
        self.engine = None
        self.runtime = None

    def _is_input(self, name: str) -> bool:
        return bool(self.engine.get_tensor_mode(name) == self.library.module.TensorIOMode.INPUT)

    def _info(self, name: str, path: Path) -> TensorInfo:
        trt = self.library.module
        on_host = self.engine.get_tensor_location(name) == trt.TensorLocation.HOST
        if on_host or self.engine.is_shape_inference_io(name):
            raise EngineError(
                f"{path}: tensor '{name}' carries a shape, which this runtime does not serve.",
                "Export the model so that shapes follow from its inputs' shapes.",
            )
        dtype = self.engine.get_tensor_dtype(name)
        known = {getattr(trt.DataType, key): value for key, value in _DTYPES.items()}
        if dtype not in known:
            raise EngineError(
                f"{path}: tensor '{name}' is {str(dtype).rpartition('.')[2]}, which numpy does not have.",
                f"Inputs and outputs may be {', '.join(_DTYPES.values())}.",
            )
        shape = tuple(map(_fixed_size, self.engine.get_tensor_shape(name)))
        return TensorInfo(name, known[dtype], shape)

    def _profile(self, index: int) -> Profile:
        ranges = {}
        for info in self.inputs:
            dims = self.engine.get_tensor_profile_shape(info.name, index)
            ranges[info.name] = Range(*(tuple(map(int, shape)) for shape in dims))
        return Profile(index, ranges)


def _fixed_size(dimension: int) -> int | None:
    """Return a dimension's size; TensorRT gives -1 for a dynamic one."""
    return None if dimension < 0 else int(dimension)


def refuse_misfit(
    expected: Expected, library: TrtLibrary, device: CudaDevice, path: Path, *, allow_host_code: bool
) -> None:
    """Compare what an engine was built for with what is here.

    Raises:
        ArtifactError: another library, version or GPU, or host code that was not allowed.
    """
    if expected.version_compatible and not allow_host_code:
        raise ArtifactError(
            f"{path}: the engine is version compatible: it carries host code, which would run in this process.",
            f"Allow that only for an engine of your own; or build it without --version-compat. {_REBUILD}",
        )
    if not _same_version(expected, library):
        raise ArtifactError(
            f"{path}: the engine was built by {expected.label}, here is {library.label}.",
            f"{_REBUILD} Or install the version it was built by.",
        )
    found = "{}.{}".format(*device.capability)
    if expected.compute_capabilities is not None and found not in expected.compute_capabilities:
        raise ArtifactError(
            f"{path}: the engine is for compute capability {', '.join(expected.compute_capabilities)},"
            f" {device.name} has {found}.",
            _REBUILD,
        )


@cache
def library_logger(library: TrtLibrary) -> tuple[Any, Messages]:
    """Return the process's one logger of a library: the first is the only one that TensorRT ever calls."""
    messages = Messages()
    return _logger(library.module, messages), messages


def _logger(trt: Any, messages: Messages) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc] # a class of an untyped library
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            messages.add(str(severity).rpartition(".")[2], text)

    return Logger()


def _same_version(expected: Expected, library: TrtLibrary) -> bool:
    if expected.library != library.name:
        return False
    if expected.version == library.version:
        return True
    built, here = _numbers(expected.version), _numbers(library.version)
    return expected.version_compatible and built[0] == here[0] and built < here


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _require_valid(found: tuple[Any, int], library: TrtLibrary, messages: Messages, path: Path) -> None:
    trt, (validity, bits) = library.module, found
    if validity == trt.EngineValidity.VALID:
        return
    reasons = [n for n, m in trt.EngineInvalidityDiagnostics.__members__.items() if int(m) & int(bits)]
    why = ", ".join(reasons) or "no reason given"
    if validity == trt.EngineValidity.SUBOPTIMAL:
        logger.warning("%s: %s can run the engine, but not at its best: %s.", path, library.label, why)
        return
    failure = messages.failure(
        f"{path}: {library.label} says that the engine cannot run here ({why})", _REBUILD
    )
    if "INSUFFICIENT_GPU_MEMORY" in reasons:
        raise ResourceError(failure.message, "Free memory on the GPU, or build for a smaller batch.")
    if _MACHINE_FAULTS & set(reasons):
        raise BackendUnavailable(failure.message, "Update the NVIDIA driver; `gacq-deploy doctor` shows it.")
    raise ArtifactError(failure.message, _REBUILD)
