"""How does a run directory's engine plan open? Found, checked against its manifest, and only then deserialized."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from gacq_deploy.backends.base import Engine
from gacq_deploy.build_trt.coverage import check_coverage
from gacq_deploy.build_trt.manifest import (
    MANIFEST,
    PLAN,
    EngineRecord,
    find_engine,
    graph_digest,
    read_engine,
)
from gacq_deploy.build_trt.profiles import corners
from gacq_deploy.engines.catalogue import CANONICAL, FLOAT, TrtName, engine_named
from gacq_deploy.engines.open import open_engine
from gacq_deploy.errors import ArtifactError
from gacq_deploy.export.record import load_export
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
        shapes = (s for profile in self.record.inputs.options.profiles for s in corners(profile))
        return tuple(sorted({shape[0] for corner in shapes for shape in corner.values()}))

    def open(self, *, allow_host_code: bool = False) -> Engine:
        """Open it.

        Args:
            allow_host_code: run the code that a version-compatible plan carries.

        Raises:
            BackendUnavailable: the library, CUDA or a GPU is missing.
            ArtifactError: the plan is for another version or GPU, or holds no weights.
            EngineError, ResourceError: it does not load.
        """
        if self.record.inputs.options.strip:
            raise ArtifactError(
                f"{self.path} was built with --strip: it holds no weights to run with.",
                "Build it without --strip, or refit it with NVIDIA's own API.",
            )
        from gacq_deploy.backends.trt.engine import TrtEngine

        return TrtEngine(self.path, expected=self.record.expected, allow_host_code=allow_host_code)


def is_compiled(engine: str) -> TypeGuard[TrtName]:
    """Tell whether an engine of this name runs plans, not ONNX graphs."""
    return engine_named(engine).compiled


def locate_plan(directory: RunDirectory, library: TrtName, *, graph: str = CANONICAL) -> Plan:
    """Return the newest plan of ``library`` that was built from the exported graph.

    Args:
        directory: the run.
        library: `tensorrt` or `tensorrt-rtx`.
        graph: ``int8.onnx``, or ``float.onnx`` for the twin.

    Raises:
        ArtifactError: none was built, or it is stale or damaged.
        GateError: too few of its planned layers are INT8.
    """
    folder, record = find_engine(directory, load_export(directory), library, graph=graph)
    if record.coverage is not None:
        check_coverage(record.coverage, record.least_coverage)
    return Plan(folder, record)


def locate_twin(directory: RunDirectory, plan: Plan) -> Plan:
    """Return the float engine that was built with the same options as ``plan``, to be timed beside it.

    Raises:
        ArtifactError: none was built, or it is damaged.
    """
    digest = graph_digest(load_export(directory), FLOAT)
    inputs = plan.record.inputs.model_copy(update={"graph": FLOAT, "graph_sha256": digest})
    folder = directory.engines / inputs.key
    command = f"gacq-deploy build-trt {directory.root} --backend {inputs.library} --fp16-twin"
    hint = f"Run `{command}` with the options that engine was built with."
    if not (folder / MANIFEST).is_file():
        raise ArtifactError(f"{plan.folder} has no float twin in {directory.engines} to compare with.", hint)
    return Plan(folder, read_engine(folder, hint))


def why_others(directory: RunDirectory, judged: Mapping[str, str]) -> str | None:
    """Return why the compiled engines of a report are not the ones that would run now; None: they are.

    Args:
        directory: the run.
        judged: library -> key of its engine when the report was made.
    """
    for library in filter(is_compiled, judged):
        try:
            folder, _ = find_engine(directory, load_export(directory), library)
        except ArtifactError as error:
            return f"it is about {library} engine {judged[library]}, and {error.message.rstrip('.')}"
        if folder.name != judged[library]:
            return f"it is about {library} engine {judged[library]}, {folder.name} would run now"
    return None


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
