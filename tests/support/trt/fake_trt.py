"""TensorRT's runtime on the fake CUDA driver: plans are JSON, kernels are numpy, and every rule is checked.

A plan names a program of ``PROGRAMS``. What TensorRT refuses with False or None and a message in the log, this does
too; what it leaves undefined (a graph replayed after its context changed or died, memory too small or freed) is a
:class:`FakeMisuse`.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from enum import Enum, IntEnum
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from gacq_deploy.backends.trt.dlpack import numpy_dtype
from gacq_deploy.backends.trt.library import TrtLibrary
from gacq_deploy.engines.catalogue import TrtName
from tests.support.graphs.onnx_graphs import SAMPLE_SHAPE, reference
from tests.support.trt.fake_cuda import FakeDriver, FakeFault

Arrays = dict[str, np.ndarray]
Ranges = dict[str, tuple[list[int], list[int], list[int]]]


class DataType(Enum):
    FLOAT = "float32"
    HALF = "float16"
    BF16 = "bfloat16"
    INT64 = "int64"
    INT32 = "int32"
    INT8 = "int8"
    UINT8 = "uint8"
    BOOL = "bool"
    FP8 = "float8"


class TensorIOMode(Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class TensorLocation(Enum):
    DEVICE = 0
    HOST = 1


class ExecutionContextAllocationStrategy(Enum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


class CudaGraphStrategy(Enum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class EngineValidity(Enum):
    VALID = 0
    SUBOPTIMAL = 1
    INVALID = 2


class EngineInvalidityDiagnostics(IntEnum):
    VERSION_MISMATCH = 1
    UNSUPPORTED_CC = 2
    OLD_CUDA_DRIVER = 4
    OLD_CUDA_RUNTIME = 8
    INSUFFICIENT_GPU_MEMORY = 16
    MALFORMED_ENGINE = 32
    CUDA_ERROR = 64


class Severity(Enum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ILogger:
    """Base of loggers; its constructor has to be called."""

    def __init__(self) -> None:
        self._constructed = True

    def log(self, severity: Severity, text: str) -> None:
        raise NotImplementedError


def _denoiser(feeds: Arrays) -> Arrays:
    return {"output": reference(feeds).astype(np.float32)}


def _scaled(feeds: Arrays) -> Arrays:
    return {"y": (feeds["x"].astype(np.float32) * 2 + 1).astype(feeds["x"].dtype)}


PROGRAMS: dict[str, Callable[[Arrays], Arrays]] = {"denoiser": _denoiser, "scaled": _scaled}
_MAGIC = "fake plan"


def write_plan(
    path: Path,
    *,
    program: str = "denoiser",
    inputs: dict[str, tuple[str, list[int]]] | None = None,
    outputs: dict[str, tuple[str, list[int]]] | None = None,
    profiles: list[Ranges] | None = None,
    **facts: Any,
) -> Path:
    """Write a plan of the denoiser of ``onnx_graphs``, unless told otherwise, for 1 to 8 rows.

    ``facts``: ``scratch`` bytes, ``fails`` (a text that enqueue logs and fails with), ``uncapturable``,
    ``host_code``, ``shape_tensor`` (a name), ``validity`` and ``diagnostics``.
    """
    document = {
        "magic": _MAGIC,
        "program": program,
        "inputs": inputs
        or {
            "sample": ("float32", [-1, *SAMPLE_SHAPE]),
            "timestep": ("int64", [-1]),
            "class_labels": ("int64", [-1]),
        },
        "outputs": outputs or {"output": ("float32", [-1, *SAMPLE_SHAPE])},
        "profiles": profiles or [denoiser_profile(1, 4, 8)],
        "scratch": 1000,
        **facts,
    }
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def denoiser_profile(least: int, best: int, most: int) -> Ranges:
    """Return a profile of the denoiser for a range of rows."""
    rest: dict[str, tuple[int, ...]] = {"sample": SAMPLE_SHAPE, "timestep": (), "class_labels": ()}
    return {n: ([least, *dims], [best, *dims], [most, *dims]) for n, dims in rest.items()}


def fake_trt(driver: FakeDriver, name: TrtName = "tensorrt", version: str = "10.16.1.11") -> TrtLibrary:
    """Return a library whose engines run on ``driver``; `tensorrt-rtx` adds what only that one has."""
    rtx = name == "tensorrt-rtx"
    module = ModuleType(name)
    for part in (DataType, TensorIOMode, TensorLocation, ExecutionContextAllocationStrategy, ILogger):
        setattr(module, part.__name__, part)

    def runtime(logger: ILogger) -> Runtime:
        return (RtxRuntime if rtx else Runtime)(logger, driver)

    module.Runtime = runtime  # type: ignore[attr-defined]
    module.__version__ = version  # type: ignore[attr-defined]
    if rtx:
        for part in (CudaGraphStrategy, EngineValidity, EngineInvalidityDiagnostics):
            setattr(module, part.__name__, part)
    return TrtLibrary(name, module, version)


class _Object:
    """Something of the library: it must be let go of while its device is current."""

    def __init__(self, driver: FakeDriver, kind: str) -> None:
        self._driver = driver
        driver.require_current(f"a {kind} was made")
        weakref.finalize(self, _gone, driver, kind).atexit = False


def _gone(driver: FakeDriver, kind: str) -> None:
    driver.events.append(kind)
    if not driver._stack():
        driver.misuse.append(f"the {kind} was destroyed without a current device")


class Runtime(_Object):
    """Deserializes plans."""

    def __init__(self, logger: ILogger, driver: FakeDriver) -> None:
        super().__init__(driver, "runtime")
        assert logger._constructed
        self._logger = logger
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, data: bytes) -> ICudaEngine | None:
        try:
            document = json.loads(data)
        except ValueError:
            self._logger.log(Severity.ERROR, "Serialization assertion stdVersionRead == kVERSION failed.")
            return None
        if document.get("host_code") and not self.engine_host_code_allowed:
            self._logger.log(Severity.ERROR, "Plan has host code, engine_host_code_allowed is not set.")
            return None
        self._logger.log(Severity.INFO, "Loaded engine size: 0 MiB")
        return ICudaEngine(self, document)


class RtxRuntime(Runtime):
    """As TensorRT-RTX has it."""

    def get_engine_validity(self, data: bytes) -> tuple[EngineValidity, int]:
        try:
            document = json.loads(data)
        except ValueError:
            return EngineValidity.INVALID, int(EngineInvalidityDiagnostics.MALFORMED_ENGINE)
        return EngineValidity[document.get("validity", "VALID")], int(document.get("diagnostics", 0))


class IRuntimeConfig:
    """Settings of a context."""

    def __init__(self) -> None:
        self._strategy = ExecutionContextAllocationStrategy.STATIC
        self.cuda_graph_strategy = CudaGraphStrategy.DISABLED

    def set_execution_context_allocation_strategy(self, strategy: ExecutionContextAllocationStrategy) -> None:
        self._strategy = strategy


class ICudaEngine(_Object):
    """A plan in memory."""

    def __init__(self, runtime: Runtime, document: dict[str, Any]) -> None:
        super().__init__(runtime._driver, "engine")
        self._runtime = weakref.ref(runtime)
        self._rtx = isinstance(runtime, RtxRuntime)
        self._logger = runtime._logger
        self._document = document
        self._io: dict[str, tuple[str, list[int]]] = {**document["inputs"], **document["outputs"]}
        self.num_io_tensors = len(self._io)
        self.num_optimization_profiles = len(document["profiles"])
        self.device_memory_size_v2 = document["scratch"]

    def get_tensor_name(self, index: int) -> str:
        return list(self._io)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self._document["inputs"] else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType(self._io[name][0])

    def get_tensor_shape(self, name: str) -> list[int]:
        return list(self._io[name][1])

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.DEVICE

    def is_shape_inference_io(self, name: str) -> bool:
        return bool(name == self._document.get("shape_tensor"))

    def get_tensor_profile_shape(self, name: str, index: int) -> list[list[int]]:
        assert self.get_tensor_mode(name) == TensorIOMode.INPUT
        return list(self._document["profiles"][index][name])

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_execution_context(
        self, chosen: ExecutionContextAllocationStrategy | IRuntimeConfig
    ) -> IExecutionContext | None:
        if self._runtime() is None:
            raise self._driver.complain("an engine was used after its runtime was destroyed")
        native = False
        if isinstance(chosen, IRuntimeConfig):
            native = self._rtx and chosen.cuda_graph_strategy == CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            chosen = chosen._strategy
        if self._document.get("no_context"):
            self._logger.log(Severity.ERROR, "Error Code 2: OutOfMemory (Requested size was 9 bytes.)")
            return None
        return IExecutionContext(self, chosen, native=native)


class IExecutionContext(_Object):
    """Runs an engine at one set of shapes."""

    def __init__(
        self, engine: ICudaEngine, strategy: ExecutionContextAllocationStrategy, *, native: bool
    ) -> None:
        super().__init__(engine._driver, "context")
        self._engine = engine
        self._log = engine._logger.log
        self._managed = strategy == ExecutionContextAllocationStrategy.USER_MANAGED
        self._native = native
        self._scratch: tuple[int, int] | None = None
        self._profile: int | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._output_shapes: dict[str, tuple[int, ...]] | None = None
        self._addresses: dict[str, int] = {}
        self._generation = 0
        self._settled = -1

    def set_device_memory(self, address: int, nbytes: int) -> None:
        if not self._managed or address % 256 or nbytes < self._engine.device_memory_size_v2:
            raise self._driver.complain(f"scratch memory of {nbytes} bytes at {address:#x} does not do")
        self._scratch = (address, nbytes)
        self._generation += 1

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self._driver.require_current("set_optimization_profile_async")
        if not 0 <= index < self._engine.num_optimization_profiles:
            return self._refuse(f"profile {index} does not exist")
        self._driver.queue(stream, lambda: None)
        self._profile = index
        self._shapes.clear()
        self._changed()
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if self._profile is None:
            raise self._driver.complain("a shape was set before the profile")
        least, _, most = self._engine.get_tensor_profile_shape(name, self._profile)
        if len(shape) != len(least) or any(
            not lo <= n <= hi for lo, n, hi in zip(least, shape, most, strict=True)
        ):
            return self._refuse(f"{name}: {shape} is outside profile {self._profile}")
        self._shapes[name] = tuple(shape)
        self._changed()
        return True

    def infer_shapes(self) -> list[str]:
        missing = [n for n in self._engine._document["inputs"] if n not in self._shapes]
        if not missing:
            rows = next(iter(self._shapes.values()))[:1]
            self._output_shapes = {}
            for name, (_, shape) in self._engine._document["outputs"].items():
                like = self._shapes.get("x", (*rows, *shape[1:]))
                self._output_shapes[name] = tuple(
                    n if s == -1 else s for s, n in zip(shape, like, strict=True)
                )
        return missing

    def get_tensor_shape(self, name: str) -> list[int]:
        if self._output_shapes is None:
            raise self._driver.complain("an output shape was read before infer_shapes")
        return list(self._output_shapes[name])

    def set_tensor_address(self, name: str, address: int) -> bool:
        if address % 256:
            return self._refuse(f"the address of {name} is not aligned")
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        driver = self._driver
        driver.require_current("execute_async_v3")
        if self._output_shapes is None or self._addresses.keys() != self._engine._io.keys():
            raise driver.complain("execute_async_v3 before shapes were inferred and addresses set")
        if self._managed and self._engine.device_memory_size_v2 and self._scratch is None:
            raise driver.complain("execute_async_v3 without scratch memory")
        failure = self._engine._document.get("fails")
        if failure:
            return self._refuse(failure)
        if driver.capturing(stream):
            if self._native:
                raise driver.complain("a context that makes its own graphs was captured")
            if self._settled != self._generation or self._engine._document.get("uncapturable"):
                driver.spoil_capture(stream)
                return self._refuse("operation not permitted when stream is capturing")
        self._settled = self._generation
        driver.queue(stream, self._kernel())
        return True

    def _kernel(self) -> Callable[[], None]:
        """Return the run with everything fixed as it is now; it may be replayed, but not after a change."""
        alive, driver, generation = weakref.ref(self), self._driver, self._generation
        shapes = {**self._shapes, **(self._output_shapes or {})}
        addresses, scratch, document = dict(self._addresses), self._scratch, self._engine._document

        def memory(name: str) -> np.ndarray:
            dtype = numpy_dtype({**document["inputs"], **document["outputs"]}[name][0])
            raw = driver.view(addresses[name], prod(shapes[name]) * dtype.itemsize)
            return raw.view(dtype).reshape(shapes[name])

        def work() -> None:
            context = alive()
            if context is None or context._generation != generation:
                raise driver.complain("a run outlived its context, or the context changed under it")
            if scratch is not None:
                driver.view(*scratch)[:] = 0xA5
            results = PROGRAMS[document["program"]]({n: memory(n).copy() for n in document["inputs"]})
            for name, result in results.items():
                if result.shape != shapes[name]:
                    raise FakeFault(f"{name} is {result.shape}, its memory {shapes[name]}")
                memory(name)[...] = result

        return work

    def _changed(self) -> None:
        self._output_shapes = None
        self._generation += 1

    def _refuse(self, text: str) -> bool:
        self._log(Severity.ERROR, f"IExecutionContext: Error Code 3: {text}")
        return False
