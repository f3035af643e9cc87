"""Which engines are there? One record an engine; every other list of engines, graphs or targets is derived from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gacq_deploy.engines.attributes import import_attribute
from gacq_deploy.errors import BackendUnavailable, UsageError, did_you_mean

if TYPE_CHECKING:
    from gacq_deploy.backends.base import Engine
    from gacq_deploy.backends.kernels import KernelUse

FLOAT, CANONICAL, CPU = "float.onnx", "int8.onnx", "int8.cpu.onnx"
"""The graphs that an export writes: the float one; Q/DQ pairs around int8; the same for uint8 kernels."""
TrtName = Literal["tensorrt", "tensorrt-rtx"]
LintRules = Literal["tensorrt", "ort-cpu", "openvino"]
"""Whose rules a graph is judged by."""
ENTRY_POINTS = "gacq_deploy.engines"
"""Group of entry points by which another package adds an engine: each names an :class:`EngineRecord`."""


@dataclass(frozen=True, kw_only=True)
class EngineRecord:
    """One engine. What is imported only when it is used stands as ``module:attribute``."""

    name: str
    backend: str
    """The class that runs a graph: ``(model, *, threads, optimize)`` gives an ``Engine``."""
    install: str
    """Shell command that installs its library."""
    title: str = ""
    """What people call its library; empty: as it is named."""
    graphs: tuple[str, ...]
    """Exported graphs it takes, the best one first."""
    rules: LintRules | None = None
    """Whose rules a graph made for it must keep."""
    kernels: str | None = None
    """Function that tells in which kernel each quantized layer of a graph runs."""
    unfit: str | None = None
    """Function that tells why a graph would be computed wrong on this machine (None: it would not), and what helps.

    ``(engine's name, graph) -> (reason, remedy) | None``; without one the engine is exact everywhere.
    """
    compiled: bool = False
    """Whether it runs what `build-trt` made of a graph, and not the graph itself."""
    on_gpu: bool = False
    by_default: bool = False
    """Whether `parity` and `bench` take it, where it is installed, when no engine is named."""
    runs_in: str = ""
    """The engine that really runs, where this one only takes another graph; empty: itself."""

    @property
    def best_graph(self) -> str:
        """The exported graph that it runs best."""
        return self.graphs[0]

    @property
    def runner(self) -> str:
        """Name of the engine that really runs."""
        return self.runs_in or self.name

    @property
    def is_quantized(self) -> bool:
        """Whether it runs INT8 graphs."""
        return FLOAT not in self.graphs

    def load(self) -> Any:
        """Import the class that runs graphs.

        Raises:
            BackendUnavailable: its library is not installed or does not load; the hint is the command that installs it.
        """
        return self._import(self.backend)

    def why_unfit(self, graph: Path | bytes) -> tuple[str, str] | None:
        """Return why ``graph`` may not run in this engine on this machine, and what works instead.

        Raises:
            ArtifactError: the graph is missing, corrupt, or its external data is not its own.
        """
        if self.unfit is None:
            return None
        judge: Callable[[str, Path | bytes], tuple[str, str] | None] = self._import(self.unfit)
        return judge(self.name, graph)

    def require_fit(self, graph: Path | bytes) -> None:
        """Refuse a graph that this engine would compute wrong on this machine.

        Raises:
            BackendUnavailable: with the reason, and what works instead.
            ArtifactError: as for :meth:`why_unfit`.
        """
        if (found := self.why_unfit(graph)) is not None:
            raise BackendUnavailable(*found)

    def executed_kernels(self, graph: Path | bytes) -> tuple[KernelUse, ...]:
        """Return for every layer with integer weights in ``graph`` the kernel that runs it.

        Raises:
            UsageError: this engine cannot tell.
            BackendUnavailable, ArtifactError, EngineError: as for :func:`gacq_deploy.engines.open.open_engine`.
        """
        if self.kernels is None:
            tells = ", ".join(record.name for record in known_engines().values() if record.kernels)
            raise UsageError(f"Engine '{self.name}' does not tell its kernels.", f"Ask one of: {tells}.")
        report: Callable[[Path | bytes], tuple[KernelUse, ...]] = self._import(self.kernels)
        return report(graph)

    def open(self, graph: Path | bytes, *, threads: int = 0, optimize: bool = True) -> Engine:
        """Open a graph as it is; :func:`gacq_deploy.engines.open.open_engine` also asks whether it may run here."""
        opened: Engine = self.load()(graph, threads=threads, optimize=optimize)
        return opened

    def _import(self, target: str) -> Any:
        return import_attribute(target, what=f"Engine '{self.name}'", hint=self.install)


def _pip(extra: str) -> str:
    return f"pip install 'gacq-deploy[{extra}]'"


_ORT = "gacq_deploy.backends.ort"
_OPENVINO = "gacq_deploy.backends.openvino"
BUILT_IN = (
    EngineRecord(
        name="ort-cpu",
        title="ONNX Runtime",
        backend=f"{_ORT}:OrtCpuEngine",
        install=_pip("cpu"),
        graphs=(CPU, CANONICAL),
        rules="ort-cpu",
        kernels=f"{_ORT}:integer_kernels",
        by_default=True,
    ),
    EngineRecord(
        name="openvino",
        title="OpenVINO",
        backend=f"{_OPENVINO}:OpenVinoEngine",
        install=_pip("openvino"),
        graphs=(CANONICAL,),
        rules="openvino",
        kernels=f"{_OPENVINO}:integer_kernels",
        unfit="gacq_deploy.backends.saturation:why_inexact",
        by_default=True,
    ),
    EngineRecord(
        name="ort-cuda",
        title="ONNX Runtime on CUDA",
        backend=f"{_ORT}:OrtCudaEngine",
        install=_pip("gpu"),
        graphs=(CANONICAL,),
        on_gpu=True,
    ),
    EngineRecord(
        name="tensorrt",
        title="TensorRT",
        backend="gacq_deploy.backends.trt.engine:TrtEngine",
        install=_pip("trt"),
        graphs=(CANONICAL,),
        rules="tensorrt",
        compiled=True,
        on_gpu=True,
    ),
    EngineRecord(
        name="tensorrt-rtx",
        title="TensorRT for RTX",
        backend="gacq_deploy.backends.trt.engine:TrtEngine",
        install=_pip("rtx"),
        graphs=(CANONICAL,),
        rules="tensorrt",
        compiled=True,
        on_gpu=True,
    ),
    EngineRecord(
        name="float",
        title="ONNX Runtime",
        backend=f"{_ORT}:OrtCpuEngine",
        install=_pip("cpu"),
        graphs=(FLOAT,),
        runs_in="ort-cpu",
    ),
)
REFERENCE = BUILT_IN[0].name
"""The first: every other one is compared with it, and its arithmetic is exact on every processor."""
FLOAT_ENGINE = next(record.name for record in BUILT_IN if not record.is_quantized)
TARGETS = tuple(record.name for record in BUILT_IN if record.is_quantized)
"""The engines that an INT8 graph can be made for."""
COMPILED = tuple(record.name for record in BUILT_IN if record.compiled)
"""The engines that `build-trt` compiles for."""
RULED: Mapping[str, LintRules] = {
    record.name: record.rules for record in BUILT_IN if record.rules is not None
}
"""The engines whose rules are known, and whose they are."""


@cache
def known_engines() -> Mapping[str, EngineRecord]:
    """Return every engine by name: those of this package, then those that installed packages add.

    Raises:
        BackendUnavailable: a package's entry point does not load, names no record, or a name that is taken.
    """
    # at import it would cost every command 60 ms
    from importlib.metadata import entry_points

    found = {record.name: record for record in BUILT_IN}
    for point in entry_points(group=ENTRY_POINTS):
        what = f"The entry point {point.name} = {point.value} in {ENTRY_POINTS}"
        hint = f"Mend or uninstall {point.dist.name if point.dist else 'the package that adds it'}."
        record = import_attribute(point.value, what=what, hint=hint)
        if not isinstance(record, EngineRecord):
            raise BackendUnavailable(f"{what} is a {type(record).__name__}, not an EngineRecord.", hint)
        if record.name in found:
            raise BackendUnavailable(f"{what} adds '{record.name}', which there is already.", hint)
        found[record.name] = record
    return found


def engine_named(name: str) -> EngineRecord:
    """Return the record of an engine.

    Raises:
        UsageError: there is no engine of this name.
        BackendUnavailable: as for :func:`known_engines`.
    """
    # entry points are asked last: to read them takes time, and another package's may be broken
    for record in BUILT_IN:
        if record.name == name:
            return record
    if name not in known_engines():
        hint = f"{did_you_mean(name, known_engines())}Choose one of: {', '.join(known_engines())}."
        raise UsageError(f"Engine '{name}' is not known.", hint)
    return known_engines()[name]


def default_engines() -> tuple[str, ...]:
    """Return the engines that are measured and judged when none is named."""
    return tuple(record.name for record in known_engines().values() if record.by_default)


def graphs_for(targets: Iterable[str]) -> tuple[str, ...]:
    """Return the graphs that an export for these engines writes: the float one, and each one's best."""
    wanted = {record.best_graph for record in BUILT_IN if record.name in targets}
    return (FLOAT, *(graph for graph in (CANONICAL, CPU) if graph in wanted))


def rules_for(graph: str) -> tuple[LintRules, ...]:
    """Return whose rules an exported graph must keep: those of the engines that it is the best graph for."""
    made_for = (record.rules for record in BUILT_IN if record.best_graph == graph)
    return tuple(dict.fromkeys(rules for rules in made_for if rules is not None))
