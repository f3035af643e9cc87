"""How does a run directory's engine plan open? Found, checked against its manifest, and only then deserialized."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from gacq_deploy.backends import open_engine
from gacq_deploy.backends.base import Engine
from gacq_deploy.backends.trt_library import TRT_NAMES, TrtName
from gacq_deploy.building.coverage import check_coverage
from gacq_deploy.building.manifest import PLAN, EngineRecord, find_engine, read_engine
from gacq_deploy.export.record import CANONICAL, load_export
from gacq_deploy.run_directory import RunDirectory


@dataclass(frozen=True)
class Plan:
    """A plan whose manifest, graph and coverage were checked; ``open`` loads it."""

    folder: Path
    record: EngineRecord

    @property
    def path(self) -> Path:
        """The plan's file."""
        return self.folder / PLAN

    @property
    def batches(self) -> tuple[int, ...]:
        """Smallest, tuned and largest batch of every profile, ascending."""
        sizes = {r.opt[0] for p in self.record.inputs.options.profiles for r in p.values()}
        sizes |= {
            n for p in self.record.inputs.options.profiles for r in p.values() for n in (r.min[0], r.max[0])
        }
        return tuple(sorted(sizes))

    def open(self, *, allow_host_code: bool = False) -> Engine:
        """Open it.

        Args:
            allow_host_code: run the code that a version-compatible plan carries.

        Raises:
            BackendUnavailable: the library, CUDA or a GPU is missing.
            ArtifactError: the plan is for another version or GPU.
            EngineError, ResourceError: it does not load.
        """
        from gacq_deploy.backends.trt import TrtEngine

        return TrtEngine(self.path, expected=self.record.expected, allow_host_code=allow_host_code)


def is_compiled(engine: str) -> TypeGuard[TrtName]:
    """Tell whether an engine of this name runs plans, not ONNX graphs."""
    return engine in TRT_NAMES


def locate_plan(directory: RunDirectory, library: TrtName, *, graph: str = CANONICAL) -> Plan:
    """Return the newest plan of ``library`` that was built from the exported graph.

    Args:
        directory: the run; its recipe says how much of the plan must be INT8.
        library: `tensorrt` or `tensorrt-rtx`.
        graph: ``int8.onnx``, or ``float.onnx`` for the twin.

    Raises:
        ArtifactError: none was built, or it is stale or damaged.
        GateError: too few of its planned layers are INT8.
    """
    folder, record = find_engine(directory, load_export(directory), library, graph=graph)
    if record.coverage is not None:
        check_coverage(record.coverage, directory.load_recipe().build.min_int8_coverage)
    return Plan(folder, record)


def open_model(engine: str, path: Path, *, threads: int = 0, allow_host_code: bool = False) -> Engine:
    """Open a graph in an engine, or the plan at ``path`` with the manifest beside it.

    ``allow_host_code`` lets a version-compatible plan run the code it carries; graphs carry none.

    Raises:
        UsageError, BackendUnavailable, ArtifactError, EngineError: as for ``open_engine`` and :meth:`Plan.open`.
    """
    if not is_compiled(engine):
        return open_engine(engine, path, threads=threads)
    record = read_engine(path.parent, "Run `gacq-deploy build-trt` again.")
    return Plan(path.parent, record).open(allow_host_code=allow_host_code)
