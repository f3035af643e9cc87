"""How does OpenVINO run a graph on the CPU? It takes the canonical INT8 file as it is, in integer kernels."""

from __future__ import annotations

import io
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
from openvino import CompiledModel, Core, Model, get_version

from gacq_deploy.backends.base import Feeds, HostEngine, TensorInfo
from gacq_deploy.backends.kernels import KernelUse
from gacq_deploy.errors import EngineError, ResourceError, UsageError
from gacq_deploy.graph.header import read_header, size_multiple
from gacq_deploy.graph.quantized_layers import GraphLayer, graph_layers
from gacq_deploy.spec import Array
from gacq_deploy.storage.memory import lack_of_memory

_DEVICE = "CPU"
_ADDED = re.compile(
    r"(/WithoutBiases|/Dequantization(Multiply|Subtract))+$"
)  # to the names of nodes it splits
_SOURCE_PATH = re.compile(r"Check '.*?' failed at \S+:\d+:\s*| ?at src/\S+:\d+:?")
"""Where in OpenVINO's own source a check failed: of no use to whoever reads the message."""


class OpenVinoEngine(HostEngine):
    """A graph in OpenVINO on the CPU, float parts in float32; runs of one engine take turns."""

    def __init__(self, model: Path | bytes, *, threads: int = 0, optimize: bool = True) -> None:
        if not optimize:
            raise UsageError(
                "OpenVINO always optimizes a graph.",
                "Use the engine ort-cpu to run a graph exactly as it is written.",
            )
        compiled = _compile(model, threads)
        header = read_header(model)
        multiple = size_multiple(header)
        taken = {value.name for value in header.graph.input}
        given = {value.name for value in header.graph.output}
        inputs = tuple(_tensor_info(port, taken, multiple) for port in compiled.inputs)
        outputs = tuple(_tensor_info(port, given, multiple) for port in compiled.outputs)
        super().__init__(f"openvino-{_version()}/{_DEVICE}", inputs, outputs)
        self._request = compiled.create_infer_request()
        self._lock = threading.Lock()

    def _run(self, feeds: Feeds) -> dict[str, Array]:
        """Run once; calls from several threads take turns."""
        request = self._request
        arrays = {k: np.ascontiguousarray(v) for k, v in feeds.items()}
        with self._lock:
            try:
                # not infer(): on one thread OpenVINO 2026.4 loses its errors and returns unwritten memory
                request.start_async(arrays)
                request.wait()
            except RuntimeError as error:
                raise lack_of_memory(error, self._label) or EngineError(
                    f"{self._label}: the run failed: {_clean(error)}",
                    "Check that the graph and its inputs belong together.",
                ) from error
            return {o.name: request.get_output_tensor(i).data.copy() for i, o in enumerate(self._outputs)}

    def _close(self) -> None:
        del self._request


def integer_kernels(model: Path | bytes) -> tuple[KernelUse, ...]:
    """Return what OpenVINO runs for each quantized layer, read from its execution graph.

    Raises:
        ArtifactError, EngineError: as for opening the engine.
    """
    layers = graph_layers(read_header(model))
    executed: dict[str, tuple[str, bool]] = {}
    for operation in _compile(model, threads=1).get_runtime_model().get_ordered_ops():
        facts = operation.get_rt_info()
        if _text(facts, "layerType") not in (
            "Convolution",
            "Deconvolution",
            "FullyConnected",
            "MatMul",
            "Gemm",
        ):
            continue
        kernel = _text(facts, "primitiveType")
        use = (kernel, _text(facts, "runtimePrecision") in ("i8", "u8"))
        for name in _text(facts, "originalLayersNames").split(","):
            executed.setdefault(_ADDED.sub("", name), use)
    return tuple(_kernel_use(layer, executed) for layer in layers)


def _kernel_use(layer: GraphLayer, executed: dict[str, tuple[str, bool]]) -> KernelUse:
    kernel, integer = executed.get(layer.node, ("not found", False))
    return KernelUse(layer, kernel, integer)


def _compile(model: Path | bytes, threads: int) -> CompiledModel:
    read_header(model)  # says what is wrong with a damaged file more plainly than OpenVINO does
    settings: dict[str, Any] = {
        # without this a CPU with bf16 runs the float parts, and the float baseline, in bf16
        "INFERENCE_PRECISION_HINT": "f32",
        # runs of one engine take turns, so one of them may have all threads
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
    }
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    core = Core()
    try:
        network: Model = core.read_model(str(model) if isinstance(model, Path) else io.BytesIO(model))
        return core.compile_model(network, _DEVICE, settings)
    except RuntimeError as error:
        raise (
            lack_of_memory(error, f"OpenVINO {_version()}")
            or _lost_front_end(error)
            or EngineError(
                f"OpenVINO {_version()} refuses the model: {_clean(error)}",
                "Run `gacq-deploy lint` on the run directory; export again if the file was edited.",
            )
        ) from error


def _lost_front_end(error: Exception) -> ResourceError | None:
    """Return what is to be said where OpenVINO could not map its library that reads ONNX: it drops it in silence."""
    _, listed, front_ends = str(error).partition("Available frontends:")
    if not listed or "onnx" in front_ends.split():
        return None
    return ResourceError(
        f"OpenVINO {_version()} could not load its reader of ONNX files: it has {' '.join(front_ends.split())} alone.",
        "Give the process more memory (`ulimit -v`), or install openvino again if there is no limit.",
    )


def _tensor_info(port: Any, declared: set[str], multiple: int) -> TensorInfo:
    """Describe a port by its name in the ONNX graph; a compiled one may also carry names of fused tensors."""
    shape = tuple(_fixed_size(dimension) for dimension in port.get_partial_shape())
    name = next(iter(sorted(declared & set(port.get_names()))), port.get_any_name())
    return TensorInfo(name, np.dtype(port.get_element_type().to_dtype()).name, shape, multiple)


def _fixed_size(dimension: Any) -> int | None:
    return None if dimension.is_dynamic else dimension.get_length()


def _text(facts: Any, key: str) -> str:
    """Return a fact of an execution graph, which may be wrapped; nothing where it is not stated."""
    if key not in facts:
        return ""
    value = facts[key]
    return str(getattr(value, "value", value))


def _version() -> str:
    return str(get_version()).split("-")[0]


def _clean(error: Exception) -> str:
    """Return the telling lines of a native message in one, at most 300 characters."""
    lines = [s.strip() for s in str(error).splitlines() if s.strip()]
    telling = [_SOURCE_PATH.sub("", s) for s in lines if not s.startswith(("Exception from", "Check '"))]
    return (" ".join(telling) or type(error).__name__)[:300]
