"""What does one shape bucket of an engine hold? Its own context and buffers, and the CUDA graph recorded with them.

NVIDIA's advice is one context per captured graph: a graph reads state that its context keeps on the device, and a
change of shape rewrites it. The contexts share the scratch memory, which is nearly all they need.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from typing import Any

from gacq_deploy.backends.trt.cuda import CudaDevice, CudaGraph, Memory, Stream
from gacq_deploy.backends.trt.deserialized import DeserializedEngine
from gacq_deploy.backends.trt.dlpack import numpy_dtype
from gacq_deploy.backends.trt.profiles import ProfileChoice


@dataclass(frozen=True)
class Buffer:
    """Memory of one input or output at the bucket's shape."""

    memory: Memory
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size of the tensor."""
        return prod(self.shape) * numpy_dtype(self.dtype).itemsize


class Bucket:
    """A context ready to run one profile at one set of shapes."""

    def __init__(
        self,
        loaded: DeserializedEngine,
        device: CudaDevice,
        stream: Stream,
        scratch: Memory,
        choice: ProfileChoice,
        *,
        cuda_graphs: bool,
    ) -> None:
        """Make the context; the device is active.

        Raises:
            EngineError: TensorRT refuses the profile, a shape or an address.
            ResourceError: the GPU is out of memory.
        """
        self._loaded = loaded
        self._device = device
        self._stream = stream
        self._choice = choice
        self.graph: CudaGraph | None = None
        self._runs = 0
        self._native_graphs = False
        loaded.messages.clear()
        with ExitStack() as opened:
            # never a local variable: an error's traceback would keep it alive past its device
            self._context: Any = self._create_context(cuda_graphs)
            opened.callback(self._drop_context)
            self._require(self._context is not None, "making an execution context")
            self._prepare(scratch)
            self.inputs = {
                i.name: self._buffer(device, opened, i.name, i.dtype, tuple(choice.shapes[i.name]))
                for i in loaded.inputs
            }
            self._require(not self._context.infer_shapes(), "inferring the output shapes")
            self.outputs = {
                o.name: self._buffer(device, opened, o.name, o.dtype, self._output_shape(o.name))
                for o in loaded.outputs
            }
            opened.callback(self._drop_graph)
            self._resources = opened.pop_all()

    @property
    def capturable(self) -> bool:
        """Tell whether a capture may be tried: the first run at new shapes finishes the context's own set-up."""
        return self._runs > 0 and not self._native_graphs

    def enqueue(self) -> None:
        """Queue the layers, one by one.

        Raises:
            EngineError: TensorRT refused.
            ResourceError: out of memory.
        """
        self._loaded.messages.clear()
        self._require(self._context.execute_async_v3(self._stream.handle), "the run")
        self._runs += 1

    def close(self) -> None:
        """Free the graph, then the buffers, then the context; the stream must be idle."""
        self._resources.close()

    def _create_context(self, cuda_graphs: bool) -> Any:
        trt = self._loaded.library.module
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if not hasattr(trt, "CudaGraphStrategy"):
            return self._loaded.engine.create_execution_context(strategy)
        # TensorRT-RTX compiles kernels while it runs and knows best when a graph may be captured
        self._native_graphs = True
        config = self._loaded.engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        config.cuda_graph_strategy = (
            trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE if cuda_graphs else trt.CudaGraphStrategy.DISABLED
        )
        return self._loaded.engine.create_execution_context(config)

    def _prepare(self, scratch: Memory) -> None:
        if scratch.nbytes:
            self._context.set_device_memory(scratch.address, scratch.nbytes)
        index = self._choice.profile
        chosen = self._context.set_optimization_profile_async(index, self._stream.handle)
        self._require(chosen, f"choosing profile {index}")
        for name, shape in self._choice.shapes.items():
            fits = self._context.set_input_shape(name, tuple(shape))
            self._require(fits, f"input '{name}' of shape {list(shape)}")

    def _buffer(
        self, device: CudaDevice, opened: ExitStack, name: str, dtype: str, shape: tuple[int, ...]
    ) -> Buffer:
        memory = device.allocate(prod(shape) * numpy_dtype(dtype).itemsize)
        opened.callback(memory.close)
        self._require(self._context.set_tensor_address(name, memory.address), f"the address of '{name}'")
        return Buffer(memory, dtype, shape)

    def _output_shape(self, name: str) -> tuple[int, ...]:
        shape = tuple(int(n) for n in self._context.get_tensor_shape(name))
        self._require(
            min(shape, default=0) >= 0, f"the shape {list(shape)} of '{name}', which depends on data,"
        )
        return shape

    def _require(self, ok: Any, what: str) -> None:
        if not ok:
            label = f"{self._loaded.library.label}, profile {self._choice.profile}"
            raise self._loaded.messages.failure(
                f"{label}: {what} failed",
                "Build the engine again with `gacq-deploy build-trt`; see the log above.",
            )

    def _drop_graph(self) -> None:
        if self.graph is not None:
            self.graph.close()
            self.graph = None

    def _drop_context(self) -> None:
        def drop() -> None:
            self._context = None

        self._device.discard(drop)
