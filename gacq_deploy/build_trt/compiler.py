"""How is a graph compiled without trusting the compiler? In a child process, with limits, and a clear end."""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gacq_deploy.backends.trt.library import INSTALLS
from gacq_deploy.build_trt import worker
from gacq_deploy.build_trt.estimate import Estimate, estimate_build
from gacq_deploy.build_trt.layers import CompiledLayer, read_inspection, read_log
from gacq_deploy.build_trt.options import CompileOptions
from gacq_deploy.build_trt.parser_errors import explain_refusal
from gacq_deploy.engines.catalogue import TrtName
from gacq_deploy.errors import BackendUnavailable, EngineError, GacqError, ResourceError
from gacq_deploy.processes.spawn import child_environment, module_command, signal_name
from gacq_deploy.progress import SILENT, Reporter
from gacq_deploy.storage.files import write_json
from gacq_deploy.storage.memory import says_no_memory

WORKER = module_command("gacq_deploy.build_trt.worker")
"""-P: a file in the working directory must not shadow a library."""
_POLL_S = 0.05
_SILENCE = ""
"""Behind the last line of a child that has closed its stdout."""
_TAIL = 3
"""Messages of the log that an error quotes: the first ones, or of a crash the last."""
_LOADING_S = 120.0
"""Loading a library takes seconds; one that takes longer hangs."""
"""What CUDA, C++ and the system call it, in lower case."""
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """When the builder is stopped."""

    timeout_s: float = 3600.0
    memory_mb: int | None = None
    """Resident memory of the builder's process; None: no limit."""


@dataclass(frozen=True)
class Compiled:
    """What came out: the engine's file, its layers, and what it took. Seconds, and megabytes at the peak."""

    engine: Path
    layers: tuple[CompiledLayer, ...]
    library: TrtName
    version: str
    seconds: float
    peak_mb: int


@dataclass
class _Child:
    """The process, and what it said so far."""

    process: subprocess.Popen[str]
    folder: Path
    began: float = field(default_factory=time.monotonic)
    phase: str = "start"
    peak_mb: int = 0
    full: ResourceError | None = None
    """What it said of a disk without room."""

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began


def compile_graph(
    graph: Path,
    options: CompileOptions,
    *,
    folder: Path,
    limits: Limits | None = None,
    report: Reporter = SILENT,
) -> Compiled:
    """Build an engine in ``folder``; on any failure no engine is left there.

    Args:
        graph: ONNX file; external data beside it.
        options: see :class:`CompileOptions`.
        folder: exists; gets ``engine.plan``, ``builder.log`` and the worker's own files.
        limits: time and memory of the child.
        report: one stage, in estimated seconds.

    Raises:
        BackendUnavailable: the library is missing.
        EngineError: the parser or the builder refused, or the builder crashed; with node, module and remedy.
        ResourceError: out of time or memory.
    """
    result, child = _run(graph, options, folder, limits or Limits(), report)
    return Compiled(
        engine=folder / worker.ENGINE_FILE,
        layers=_layers(folder),
        library=options.backend,
        version=str(result["version"]),
        seconds=child.seconds,
        peak_mb=child.peak_mb,
    )


def _layers(folder: Path) -> tuple[CompiledLayer, ...]:
    """Return the layers from the builder's log or the engine's inspector, whichever names more of the graph's nodes."""
    with (folder / worker.LOG).open(encoding="utf-8", errors="replace") as lines:
        logged = read_log(lines)
    inspection = folder / worker.INSPECTION
    if not inspection.is_file():
        return logged
    try:
        inspected = read_inspection(inspection.read_text(encoding="utf-8"))
    except ValueError as error:
        _LOGGER.warning("The engine's inspector gave no list of layers: %s", error)
        return logged
    return max(logged, inspected, key=lambda layers: len({n for layer in layers for n in layer.nodes}))


def parse_graph(graph: Path, backend: TrtName, *, folder: Path, limits: Limits | None = None) -> str:
    """Let the library's own parser read ``graph``, build nothing, and return the library's version.

    Raises:
        BackendUnavailable, EngineError, ResourceError: as for :func:`compile_graph`.
    """
    options = CompileOptions(backend=backend)
    result, _ = _run(graph, options, folder, limits or Limits(), SILENT, parse_only=True)
    return str(result["version"])


@dataclass(frozen=True)
class LibraryFacts:
    """A library that loads: its version, and the compute capabilities it can build for."""

    name: TrtName
    version: str
    targets: tuple[str, ...]


def describe_library(name: TrtName) -> LibraryFacts:
    """Load a library in a child process, since some crash when loaded, and return what it says of itself.

    Raises:
        BackendUnavailable: not installed, or it does not load; names both installs.
    """
    with tempfile.TemporaryDirectory(prefix="gacq-library-") as folder:
        try:
            result, _ = _run(None, CompileOptions(backend=name), Path(folder), Limits(_LOADING_S), SILENT)
        except (EngineError, ResourceError) as error:
            raise BackendUnavailable(f"{name} does not load: {error.message}", INSTALLS) from error
    return LibraryFacts(name, str(result["version"]), tuple(result["targets"]))


def _run(
    graph: Path | None,
    options: CompileOptions,
    folder: Path,
    limits: Limits,
    report: Reporter,
    *,
    parse_only: bool = False,
) -> tuple[dict[str, Any], _Child]:
    job = folder / "job.json"
    write_json(
        job,
        {
            "graph": None if graph is None else str(graph.resolve()),
            "folder": str(folder.resolve()),
            "options": options.model_dump(mode="json"),
            "parse_only": parse_only,
        },
    )
    with _started(job, folder) as child:
        try:
            estimate = Estimate(1, 0, 0) if graph is None else estimate_build(graph)
            _watch(child, limits, estimate, report)
            result = _result(child, graph)
        except BaseException:
            # a child that was stopped may have written half of it
            (folder / worker.ENGINE_FILE).unlink(missing_ok=True)
            raise
    return result, child


@contextmanager
def _started(job: Path, folder: Path) -> Iterator[_Child]:
    with (folder / "stderr.txt").open("w", encoding="utf-8") as errors:
        # a session of its own: Ctrl-C reaches this process, which then ends the child
        process = subprocess.Popen(
            [*WORKER, str(job)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
            env=child_environment(CUDA_MODULE_LOADING="LAZY"),
        )
        try:
            yield _Child(process, folder)
        finally:
            _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _watch(child: _Child, limits: Limits, estimate: Estimate, report: Reporter) -> None:
    """Pass progress on until the child ends; stop it at a limit."""
    said: queue.Queue[str] = queue.Queue()
    assert child.process.stdout is not None, "the child's stdout is a pipe"
    # on a thread of its own: time and memory are watched while the child is silent
    reader = threading.Thread(target=_drain, args=(child.process.stdout, said), daemon=True)
    reader.start()
    total = max(1, round(estimate.seconds))
    report.stage("compile", total)
    shown = 0
    while child.process.poll() is None:
        _listen(child, said)
        child.peak_mb = max(child.peak_mb, _resident_mb(child.process.pid))
        if limits.memory_mb is not None and child.peak_mb > limits.memory_mb:
            raise ResourceError(
                f"The builder used {child.peak_mb} MB in phase '{child.phase}' and was stopped; "
                f"allowed are {limits.memory_mb} MB.",
                "Raise build.memory_mb, lower the profiles' largest shapes or build.opt_level.",
            )
        if child.seconds > limits.timeout_s:
            raise ResourceError(
                f"The builder did not finish in {limits.timeout_s:g} s (phase '{child.phase}') and was stopped.",
                "Raise --timeout, or lower build.opt_level.",
            )
        elapsed = min(int(child.seconds), total - 1)  # an estimate that was too short is not done yet
        if elapsed > shown:
            report.advance(elapsed - shown)
            shown = elapsed
    reader.join()
    _listen(child, said)
    report.advance(total - shown)


def _drain(stream: Any, said: queue.Queue[str]) -> None:
    for line in stream:
        said.put(line)
    said.put(_SILENCE)


def _listen(child: _Child, said: queue.Queue[str]) -> None:
    try:
        line = said.get(timeout=_POLL_S)
        while True:
            if line == _SILENCE:
                with suppress(subprocess.TimeoutExpired):
                    child.process.wait(_POLL_S)  # it ends now
                return
            try:
                _take(child, json.loads(line))
                _LOGGER.debug("builder: %s", line.strip())
            except (ValueError, KeyError, TypeError):
                _LOGGER.debug("builder said: %s", line.strip())  # some library writes to stdout itself
            line = said.get_nowait()
    except queue.Empty:
        return  # nothing more was said so far; the child is looked at again


def _take(child: _Child, said: dict[str, Any]) -> None:
    """Take in the phase that the child is in, or that it found no room."""
    if "full" in said:
        message, hint = said["full"]
        child.full = ResourceError(str(message), str(hint))
    else:
        child.phase = str(said["phase"])


def _resident_mb(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError, ValueError):
        return 0  # it has just ended
    return pages * os.sysconf("SC_PAGE_SIZE") >> 20


def _result(child: _Child, graph: Path | None) -> dict[str, Any]:
    path = child.folder / worker.RESULT
    if child.process.returncode != 0 or not path.is_file():
        raise _crash(child)
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    match result["status"]:
        case "built":
            return result
        case "unavailable":
            raise BackendUnavailable(result["message"], result["hint"])
        case "parse" if graph is not None:
            raise explain_refusal(graph, result["problems"], f"{result['library']}-{result['version']}")
        case _:
            raise _refusal(child, result)


def _refusal(child: _Child, result: dict[str, Any]) -> GacqError:
    said = _errors(child.folder / worker.LOG)
    label = f"{result['library']}-{result['version']}"
    text = f"{label}: {result['message']}" + (f" It said: {' | '.join(said)}" if said else "")
    if any(map(says_no_memory, said)):
        return ResourceError(
            text, "Lower the profiles' largest shapes, build.workspace_mb or build.opt_level."
        )
    if result["status"] == "option":
        return EngineError(text, "Correct the option.")
    # TensorRT-RTX has no float32 matrix product for compute capability 7.5
    if any("Turing" in line for line in said):
        return EngineError(text, "Build with --float-type float16, or leave compute capability 7.5 out.")
    return EngineError(text, "Run `gacq-deploy check` on the graph.")


def _crash(child: _Child) -> GacqError:
    code = child.process.returncode
    if code == worker.DISK_FULL and child.full is not None:
        return child.full
    last = " | ".join(_tail(child.folder / worker.LOG)) or "nothing"
    errors = " | ".join(_tail(child.folder / "stderr.txt"))
    if says_no_memory(f"{last} {errors}") or code == -signal.SIGKILL:
        return ResourceError(
            f"The builder was killed after {child.seconds:.0f} s at {child.peak_mb} MB, probably for memory "
            f"(phase '{child.phase}'). Its log ends: {last}",
            "Free memory, or lower the profiles' largest shapes and build.opt_level.",
        )
    how = f"crashed ({signal_name(-code)})" if code < 0 else f"ended with code {code}"
    return EngineError(
        f"The builder {how} in phase '{child.phase}' after {child.seconds:.0f} s. Its log ends: {last}"
        + (f" Its errors end: {errors}" if errors else ""),
        "Run `gacq-deploy check` on the graph: some patterns crash the compiler. Nothing was left behind.",
    )


def _errors(log: Path) -> list[str]:
    """Return the first error messages of the log: the later ones follow from them."""
    if not log.is_file():
        return []
    with log.open(encoding="utf-8", errors="replace") as lines:
        messages = (line.partition("\t") for line in lines)
        found = [text.strip() for severity, _, text in messages if severity.endswith("ERROR")]
    return [text[:300] for text in found[:_TAIL]]


def _tail(path: Path) -> list[str]:
    if not path.is_file():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    return [line.partition("\t")[2][:300] or line[:300] for line in lines if line.strip()][-_TAIL:]
