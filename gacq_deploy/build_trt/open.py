"""How does a run directory's engine open? Found, checked against its manifest, and only then deserialized."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from gacq_deploy.backends.base import Engine
from gacq_deploy.build_trt.coverage import check_coverage
from gacq_deploy.build_trt.manifest import (
    ENGINE_FILE,
    MANIFEST,
    EngineManifest,
    find_engine,
    graph_digest,
    read_engine,
)
from gacq_deploy.build_trt.profiles import corners
from gacq_deploy.engines.catalogue import CANONICAL, FLOAT, TrtName, engine_named
from gacq_deploy.engines.open import open_engine
from gacq_deploy.errors import ArtifactError, quoted
from gacq_deploy.export.record import load_export, read_record
from gacq_deploy.graph.files import data_path
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.storage.digests import held


@dataclass(frozen=True)
class LocatedEngine:
    """An engine whose manifest, graph and coverage were checked; ``open`` loads it."""

    folder: Path
    record: EngineManifest

    @property
    def path(self) -> Path:
        """The engine's file."""
        return self.folder / ENGINE_FILE

    @property
    def batches(self) -> tuple[int, ...]:
        """Smallest, tuned and largest batch of every profile, ascending."""
        shapes = (s for profile in self.record.inputs.options.profiles for s in corners(profile))
        return tuple(sorted({shape[0] for corner in shapes for shape in corner.values()}))

    def open(self, *, allow_host_code: bool = False) -> Engine:
        """Open it.

        Args:
            allow_host_code: run the code that a version-compatible engine carries.

        Raises:
            BackendUnavailable: the library, CUDA or a GPU is missing.
            ArtifactError: the engine is for another version or GPU, or holds no weights.
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
    """Tell whether an engine of this name runs compiled engines, not ONNX graphs."""
    return engine_named(engine).compiled


def locate_engine(directory: RunDirectory, library: TrtName, *, graph: str = CANONICAL) -> LocatedEngine:
    """Return the newest engine of ``library`` that was built from the exported graph.

    Args:
        directory: the run.
        library: `tensorrt` or `tensorrt-rtx`.
        graph: ``int8.onnx``, or ``float.onnx`` for the baseline.

    Raises:
        ArtifactError: none was built, or it is stale or damaged.
        GateError: too few of its planned layers are INT8.
    """
    folder, record = find_engine(directory, load_export(directory), library, graph=graph)
    if record.coverage is not None:
        check_coverage(record.coverage, record.least_coverage)
    return LocatedEngine(folder, record)


def locate_baseline(directory: RunDirectory, engine: LocatedEngine) -> LocatedEngine:
    """Return the float engine that was built with the same options as ``engine``, to be timed beside it.

    Raises:
        ArtifactError: none was built, or it is damaged.
    """
    digest = graph_digest(load_export(directory), FLOAT)
    inputs = engine.record.inputs.model_copy(update={"graph": FLOAT, "graph_sha256": digest})
    folder = directory.engines / inputs.key
    command = f"gacq-deploy build-trt {quoted(directory.root)} --backend {inputs.library} --fp16-baseline"
    hint = f"Run `{command}` with the options that engine was built with."
    if not (folder / MANIFEST).is_file():
        raise ArtifactError(
            f"{engine.folder} has no float baseline in {directory.engines} to compare with.", hint
        )
    return LocatedEngine(folder, read_engine(folder, hint))


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
    """Open a graph in an engine, or the engine at ``path`` with the manifest beside it.

    Libraries open files by their path: those of a run are held while they do, so that it is the ones that the manifest
    vouches for.

    ``allow_host_code`` lets a version-compatible engine run the code it carries; graphs carry none.

    Raises:
        UsageError, BackendUnavailable, ArtifactError, EngineError: as ``open_engine``, or :meth:`LocatedEngine.open`.
    """
    if not is_compiled(engine):
        with _held_graph(path):
            return open_engine(engine, path, threads=threads)
    hint = "Run `gacq-deploy build-trt` again."
    record = read_engine(path.parent, hint)
    with held(path, record.files[path.name].sha256, what="Engine file", hint=hint):
        return LocatedEngine(path.parent, record).open(allow_host_code=allow_host_code)


@contextmanager
def _held_graph(path: Path) -> Iterator[None]:
    """Hold an exported graph and its weights; one that is in no run has nothing to be held against."""
    run = RunDirectory(path.parent.parent)
    with ExitStack() as stack:
        if path.parent == run.onnx and run.onnx_manifest.is_file():
            files = read_record(run).files
            for file in (path, data_path(path)):
                if file.name in files:
                    sha256 = files[file.name].sha256
                    stack.enter_context(held(file, sha256, what="Exported file", hint="Export again."))
        yield
