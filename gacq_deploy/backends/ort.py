"""How does ONNX Runtime run a graph, and is it really the provider that was asked for?"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import onnx

# its wheels report every process to their maker, and leave an identifier in the home directory, unless forbidden first
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
from onnxruntime import (
    ExecutionOrder,
    GraphOptimizationLevel,
    InferenceSession,
    RunOptions,
    SessionOptions,
    __version__,
    get_available_providers,
)
from onnxruntime.capi import onnxruntime_pybind11_state as _native

from gacq_deploy.backends.base import Feeds, HostEngine, TensorInfo
from gacq_deploy.backends.kernels import KernelUse
from gacq_deploy.backends.processor import Processor, this_processor
from gacq_deploy.backends.wheels import require_one_onnxruntime
from gacq_deploy.errors import ArtifactError, BackendUnavailable, EngineError, GacqError
from gacq_deploy.graph.header import read_header, size_multiple
from gacq_deploy.graph.quantized_layers import GraphLayer, graph_layers
from gacq_deploy.spec import Array
from gacq_deploy.storage.memory import lack_of_memory

_FATAL = 4  # ONNX Runtime would print to stderr what it also raises
_FAILURES: tuple[type[Exception], ...] = (
    RuntimeError,
    ValueError,
    *(v for v in vars(_native).values() if isinstance(v, type) and issubclass(v, Exception)),
)
"""The native errors have no base class of their own."""
_CORRUPT = (_native.InvalidProtobuf, _native.NoSuchFile)
"""What is the file's fault and not the engine's."""
_DTYPES = {"float": "float32", "double": "float64"}
"""ONNX's names of types, where they are not numpy's."""
_SOURCE_PATH = re.compile(r"/\S*onnxruntime\S*\.(?:cc|h):\d+\s*")
"""Where on the machine that built the wheel an error was raised: of no use to whoever reads the message."""
_EXACT_SUFFIX = "_s8_2_u8"  # what ONNX Runtime appends to weights that it shifts to uint8
_INTEGER_OPS = frozenset(
    {"QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "ConvInteger"}
)


class OrtEngine(HostEngine):
    """A graph in ONNX Runtime on one execution provider; never on another one in silence."""

    provider: ClassVar[str] = "CPUExecutionProvider"
    pip: ClassVar[str] = "pip install 'gacq-deploy[cpu]'"

    def __init__(
        self, model: Path | bytes, *, threads: int = 0, optimize: bool = True, optimized: Path | None = None
    ) -> None:
        """Open a graph; ``optimized`` is a file to write it to as it will run."""
        require_one_onnxruntime()
        _require_offered(self.provider, self.pip)
        multiple = size_multiple(read_header(model))
        options = session_options(threads=threads, optimize=optimize)
        if optimized is not None:
            _write_optimized(options, optimized)
        self._session = _create_session(model, options, self.provider)
        require_provider(self.provider, self._session.get_providers(), self.pip)
        inputs = tuple(_tensor_info(i, multiple) for i in self._session.get_inputs())
        outputs = tuple(_tensor_info(o, multiple) for o in self._session.get_outputs())
        super().__init__(f"onnxruntime-{__version__}/{self.provider}", inputs, outputs)

    def _run(self, feeds: Feeds) -> dict[str, Array]:
        """Run once; several threads may run one engine at the same time."""
        return _run_session(self._session, feeds, self._label)

    def _close(self) -> None:
        del self._session


class OrtCpuEngine(OrtEngine):
    """ONNX Runtime on the CPU; either wheel will do."""

    @classmethod
    def open_with_kernels(
        cls, model: Path | bytes, *, threads: int = 0
    ) -> tuple[Self, tuple[KernelUse, ...]]:
        """Open a graph once, and tell what runs for each quantized layer.

        Raises:
            ArtifactError, EngineError, BackendUnavailable, ResourceError: as for opening the engine.
        """
        with tempfile.TemporaryDirectory(prefix="gacq-kernels-") as folder:
            path = Path(folder) / "optimized.onnx"
            engine = cls(model, threads=threads, optimized=path)
            graph = onnx.load(str(path), load_external_data=False).graph
        readers = {name.removesuffix(_EXACT_SUFFIX): node for node in graph.node for name in node.input}
        return engine, tuple(_kernel_use(layer, readers) for layer in graph_layers(read_header(model)))


class OrtCudaEngine(OrtEngine):
    """ONNX Runtime on CUDA."""

    provider: ClassVar[str] = "CUDAExecutionProvider"
    pip: ClassVar[str] = (
        "pip uninstall -y onnxruntime; pip install 'gacq-deploy[gpu]'"
        "    (needs an NVIDIA GPU, CUDA 13 and cuDNN 9)"
    )


CPU_LABEL = f"onnxruntime-{__version__}/{OrtCpuEngine.provider}"


class OrtPiece:
    """A part of a graph as it runs in between: whatever it is fed is computed with, infinities of a mask included.

    Its external weights are read where they are mapped from their file, and no memory is kept from run to run.
    """

    def __init__(self, model: onnx.ModelProto, folder: Path, *, threads: int, optimize: bool) -> None:
        """Open ``model``, whose external data lies in ``folder``.

        Raises:
            EngineError: it cannot run.
            ResourceError: out of memory.
        """
        options = session_options(threads=threads, optimize=optimize)
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
        # packed for its kernel, or in blocks of channels, each weight would be a copy
        options.add_session_config_entry("session.disable_prepacking", "1")
        if optimize:
            options.graph_optimization_level = GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        else:
            # as the nodes stand, where fused ones stand last; by default they run back from the outputs, and a tensor
            # is kept until the last of its readers ran
            options.execution_order = ExecutionOrder.PRIORITY_BASED
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        self._session = _create_session(model.SerializeToString(), options, OrtCpuEngine.provider)

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Run once; outputs by name.

        Raises:
            EngineError: the run failed.
            ResourceError: out of memory.
        """
        return _run_session(self._session, feeds, CPU_LABEL)


def session_options(*, threads: int, optimize: bool) -> SessionOptions:
    """Return the options every session of this project uses; 0 threads lets ONNX Runtime choose."""
    options = SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1  # nodes run one after the other; a second pool would be idle
    options.log_severity_level = _FATAL
    options.use_deterministic_compute = True
    # by default products with INT4 weights quantize their activations to int8 as they run, unasked
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if needs_exact_kernels(this_processor()):
        options.add_session_config_entry("session.x64quantprecision", "1")
    if not optimize:
        options.graph_optimization_level = GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def integer_kernels(model: Path | bytes) -> tuple[KernelUse, ...]:
    """Return what ONNX Runtime's CPU provider runs for each quantized layer, read from its optimized graph.

    Raises:
        ArtifactError, EngineError, BackendUnavailable, ResourceError: as for opening the engine.
    """
    engine, uses = OrtCpuEngine.open_with_kernels(model, threads=1)
    with engine:
        return uses


def _write_optimized(options: SessionOptions, path: Path) -> None:
    options.optimized_model_filepath = str(path)
    # weights go to a second file, so that the graph stays below protobuf's 2 GB and is read quickly
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.bin")
    options.add_session_config_entry(
        "session.optimized_model_external_initializers_min_size_in_bytes", "1024"
    )


def offered_providers() -> tuple[str, ...]:
    """Return the execution providers that this build knows; a library of one may still be missing."""
    return tuple(get_available_providers())


def opens_on(provider: str, model: bytes) -> bool:
    """Tell whether a session on ``provider`` can be created; the reason why not is ONNX Runtime's own, on stderr.

    Raises:
        ArtifactError, EngineError: the model cannot be read or run at all.
    """
    session = _create_session(model, session_options(threads=1, optimize=True), provider)
    return bool(session.get_providers()[:1] == [provider])


def needs_exact_kernels(processor: Processor) -> bool:
    """Tell whether this processor's fast uint8 x int8 kernels clamp their 16-bit sums in silence.

    ONNX Runtime has exact, slower kernels for such a processor. Its own test cannot tell VNNI from plain AVX2, so
    asking for them everywhere would slow the processors that need no help.
    """
    return processor.is_x86 and not processor.has_vnni


def require_provider(wanted: str, got: list[str], hint: str) -> None:
    """Refuse a session that fell back to another provider.

    Raises:
        BackendUnavailable: ``wanted`` is not the first of ``got``.
    """
    if not got or got[0] != wanted:
        raise BackendUnavailable(
            f"ONNX Runtime was asked for {wanted} and gave {', '.join(got) or 'nothing'}.", hint
        )


def _require_offered(provider: str, hint: str) -> None:
    offered = get_available_providers()
    if provider not in offered:
        raise BackendUnavailable(
            f"This onnxruntime {__version__} has no {provider}; it offers {', '.join(offered)}.", hint
        )


def _create_session(model: Path | bytes, options: SessionOptions, provider: str) -> InferenceSession:
    source = str(model) if isinstance(model, Path) else model
    try:
        # without these two a session, or a run, that fails is tried again on another provider in silence
        session = InferenceSession(source, options, providers=[provider], enable_fallback=0)
    except _FAILURES as error:
        text = _clean(error)
        if (lack := lack_of_memory(error, f"ONNX Runtime {__version__}")) is not None:
            raise lack from error
        if isinstance(error, _CORRUPT):
            raise ArtifactError(f"ONNX Runtime cannot read the model: {text}", "Export it again.") from error
        hint = "Run `gacq-deploy lint` on the run directory; export again if the file was edited."
        if isinstance(error, _native.NotImplemented) and needs_exact_kernels(this_processor()):
            hint = (
                "This processor has no VNNI, so exact kernels are asked for, and ONNX Runtime has none for this form. "
                "Write the graph in Q/DQ form, with uint8 activations."
            )
        raise EngineError(f"ONNX Runtime {__version__} refuses the model: {text}", hint) from error
    session.disable_fallback()
    return session


def _kernel_use(layer: GraphLayer, readers: dict[str, Any]) -> KernelUse:
    node = readers.get(layer.codes)
    while node is not None and node.op_type in ("DequantizeLinear", "Transpose", "Cast"):
        node = readers.get(node.output[0])
    # a weight that was folded into another constant has lost its codes: no integer kernel reads it
    kernel = node.op_type if node is not None else "folded"
    return KernelUse(layer, kernel, kernel in _INTEGER_OPS)


def _tensor_info(value: Any, multiple: int) -> TensorInfo:
    kind = str(value.type).removeprefix("tensor(").removesuffix(")")
    shape = tuple(map(_fixed_size, value.shape))
    return TensorInfo(value.name, _DTYPES.get(kind, kind), shape, multiple)


def _fixed_size(dimension: Any) -> int | None:
    """Return a dimension's size; in place of a dynamic one ONNX Runtime gives its name, or None."""
    return dimension if isinstance(dimension, int) else None


def _run_session(session: InferenceSession, feeds: Feeds, label: str) -> dict[str, Array]:
    names = [o.name for o in session.get_outputs()]
    arrays = {k: np.ascontiguousarray(v) for k, v in feeds.items()}
    options = RunOptions()
    options.log_severity_level = _FATAL
    try:
        return dict(zip(names, session.run(names, arrays, options), strict=True))
    except _FAILURES as error:
        raise _run_error(error, label) from error


def _run_error(error: Exception, label: str) -> GacqError:
    return lack_of_memory(error, label) or EngineError(
        f"{label}: the run failed: {_clean(error)}",
        "Check that the graph and its inputs belong together.",
    )


def _clean(error: Exception) -> str:
    """Return the first line of a native message, without the C++ source path and at most 300 characters."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return _SOURCE_PATH.sub("", lines[0])[:300]
