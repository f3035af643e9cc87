"""The builder, in a process of its own: it may crash, hang or run out of memory without taking anyone along.

``python -m gacq_deploy.build_trt.worker JOB.json``: the job names graph, folder and options. Progress goes to stdout
as JSON lines; the builder's log, the engine and ``result.json`` go to the folder. The first logger a process
registers is the only one TensorRT ever uses, so one process builds one engine.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TextIO

from gacq_deploy.backends.trt.library import TrtLibrary, has_device, load_trt
from gacq_deploy.backends.trt.polygraphy import Polygraphy, load_polygraphy
from gacq_deploy.build_trt.options import CompileOptions, ShapeRange
from gacq_deploy.errors import BackendUnavailable, ResourceError
from gacq_deploy.storage.room import FULL, no_space

ENGINE_FILE, LOG, RESULT, INSPECTION = "engine.plan", "builder.log", "result.json", "inspection.json"
DISK_FULL = 73
"""Exit code of a worker that could not write: on a full disk no file can say so, and stdout does."""
_PR_SET_PDEATHSIG = 1
"""Of Linux's ``prctl``: the signal that a process gets when its parent ends."""
_SECONDS_BETWEEN_REPORTS = 0.2


class BuildFailure(Exception):
    """The library refused; ``kind`` is `parse`, `option` or `build`."""

    def __init__(self, kind: str, message: str, problems: list[dict[str, str]] | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.problems = problems or []


def main(job: Path) -> int:
    """Build what the job says; 0 when ``result.json`` tells the outcome, whatever it is."""
    # a builder nobody waits for must not go on
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    document = json.loads(job.read_text(encoding="utf-8"))
    folder = Path(document["folder"])
    options = CompileOptions.model_validate(document["options"])
    outcome: dict[str, Any]
    try:
        library = load_trt(options.backend)
        outcome = {"library": library.name, "version": library.version, "targets": list(_targets(library))}
        outcome |= {"status": "built"} if document["graph"] is None else _outcome(library, options, document)
    except BackendUnavailable as error:
        outcome = {"status": "unavailable", "message": error.message, "hint": error.hint}
    write_made(folder / RESULT, json.dumps(outcome).encode())
    return 0


def _outcome(library: TrtLibrary, options: CompileOptions, job: dict[str, Any]) -> dict[str, Any]:
    path = Path(job["folder"]) / LOG
    with _told(path), path.open("w", encoding="utf-8") as log:
        try:
            return {"status": "built", **_build(library, options, job, log)}
        except BuildFailure as failure:
            return {"status": failure.kind, "message": str(failure), "problems": failure.problems}


def run(job: Path) -> int:
    """Do the job and return the exit code."""
    try:
        return main(job)
    except ResourceError as error:
        full = error
    except OSError as error:
        if error.errno not in FULL:
            raise
        full = no_space(error, error.filename)
    _report({"full": [full.message, full.hint]})
    os._exit(DISK_FULL)  # an orderly end would flush files once more, and fail


def write_made(path: Path, data: memoryview | bytes) -> None:
    """Write what was built.

    Raises:
        ResourceError: the disk is full; it says how many bytes are missing.
    """
    with _told(path, memoryview(data).nbytes):
        path.write_bytes(data)


@contextmanager
def _told(path: Path, needed: int | None = None) -> Iterator[None]:
    """Say of a disk that gets full inside the context what was written."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise no_space(error, path, needed) from error
        raise


def _build(library: TrtLibrary, options: CompileOptions, job: dict[str, Any], log: TextIO) -> dict[str, Any]:
    trt = library.module
    logger = _logger(trt, log)
    builder = trt.Builder(logger)
    network = builder.create_network(library.network_flags)
    parser = trt.OnnxParser(network, logger)
    began = time.monotonic()
    # by path: bytes would look for external data in the working directory
    if not parser.parse_from_file(job["graph"]):
        raise BuildFailure("parse", "The parser refused the graph.", _problems(parser))
    parsed = time.monotonic()
    if job.get("parse_only"):
        return {"parse_s": parsed - began, "layers": network.num_layers}
    polygraphy = load_polygraphy(library)
    # where the builder has no fused kernel for ONNX's Attention it may take it apart
    polygraphy.decompose_attention((builder, network, parser))()
    monitor = _monitor(trt)  # named, for a configuration need not keep it
    given = _given(library, options) | {"progress_monitor": monitor}
    config = _config(polygraphy, builder, network, options, given)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise BuildFailure("build", "The builder gave no engine.")
    folder = Path(job["folder"])
    write_made(folder / ENGINE_FILE, memoryview(serialized))
    if options.timing_cache is not None:
        whole = folder / "timing.cache"
        write_made(whole, memoryview(config.get_timing_cache().serialize()))
        whole.replace(options.timing_cache)  # never half a file, which would spoil every later build
    result = {"parse_s": parsed - began, "build_s": time.monotonic() - parsed, "layers": network.num_layers}
    if has_device():
        result |= _inspect(trt, logger, serialized, folder)
    return result


def _logger(trt: Any, log: TextIO) -> Any:
    class FileLogger(trt.ILogger):  # type: ignore[misc] # a class of an untyped library
        """Writes every message as it comes: after a crash the last line is all there is."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            log.write(f"{str(severity).rpartition('.')[2]}\t{text}\n")
            log.flush()

    return FileLogger()


def _monitor(trt: Any) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc] # as above
        """Tells the parent which phase runs; steps come by the thousand and are thinned out."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}
            self._last = 0.0

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self._steps[name] = steps
            self._say(name, 0, force=parent is None)

        def step_complete(self, name: str, step: int) -> bool:
            self._say(name, step + 1)
            return True

        def phase_finish(self, name: str) -> None:
            self._say(name, self._steps.get(name, 0))

        def _say(self, name: str, step: int, *, force: bool = False) -> None:
            now = time.monotonic()
            if force or now - self._last > _SECONDS_BETWEEN_REPORTS:
                self._last = now
                _report({"phase": name, "step": step, "of": self._steps.get(name, 0)})

    return Monitor()


def _report(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


def _problems(parser: Any) -> list[dict[str, str]]:
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    return [{"text": e.desc(), "node": e.node_name(), "operator": e.node_operator()} for e in errors]


def _config(
    polygraphy: Polygraphy, builder: Any, network: Any, options: CompileOptions, given: dict[str, Any]
) -> Any:
    """Let Polygraphy make the builder's configuration, its profiles checked against the network."""
    profiles = [_profile(polygraphy.profile(), ranges) for ranges in options.profiles]
    cache = None if options.timing_cache is None else Path(options.timing_cache)
    # not by path: it would leave a lock file there; whoever asks for a build has locked the run
    with cache.open("rb") if cache is not None and cache.is_file() else nullcontext() as kept:
        try:
            create = polygraphy.create_config(profiles=profiles, load_timing_cache=kept, **given)
            return create(builder, network)
        except (polygraphy.refusal, RuntimeError, ValueError) as error:
            refused = str(error).rstrip(".")
            raise BuildFailure("option", f"The configuration is refused: {refused}.") from error


def _profile(profile: Any, ranges: dict[str, ShapeRange]) -> Any:
    for name, shapes in ranges.items():
        profile.add(name, shapes.min, shapes.opt, shapes.max)
    return profile


def _given(library: TrtLibrary, options: CompileOptions) -> dict[str, Any]:
    """Return Polygraphy's arguments for the options; None leaves the library its default."""
    trt, workspace = library.module, options.workspace_mb
    given = {
        # at any lower level neither the log nor the inspector names a layer's ONNX nodes, which coverage needs
        "profiling_verbosity": trt.ProfilingVerbosity.DETAILED,
        "memory_pool_limits": None if workspace is None else {trt.MemoryPoolType.WORKSPACE: workspace << 20},
        "builder_optimization_level": options.opt_level,
        "refittable": options.refit,
        "strip_plan": options.strip,
        "version_compatible": options.version_compat,
    }
    if options.hw_compat:
        given["hardware_compatibility_level"] = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if options.compute_capabilities:
        given["compute_capabilities"] = _capabilities(library, options.compute_capabilities)
    if library.name == "tensorrt":
        given["tf32"] = True  # the library's own default, which Polygraphy would turn off
    return given


def _targets(library: TrtLibrary) -> tuple[str, ...]:
    """Return the compute capabilities it can build for; none where it builds for the GPU it runs on."""
    known = getattr(library.module, "ComputeCapability", None)
    numbers = sorted(int(name[2:]) for name in dir(known) if name.startswith("SM"))
    return tuple(f"{number // 10}.{number % 10}" for number in numbers)


def _capabilities(library: TrtLibrary, asked: tuple[str, ...]) -> list[tuple[int, int]]:
    """Return ``8.6`` as the pair that Polygraphy takes, of targets that there are."""
    known = _targets(library)
    for text in asked:
        if text not in known:
            raise BuildFailure(
                "option", f"There is no target {text}; there are {', '.join(known) or 'none'}."
            )
    pairs = (text.split(".") for text in asked)
    return [(int(major), int(minor)) for major, minor in pairs]


def _inspect(trt: Any, logger: Any, serialized: Any, folder: Path) -> dict[str, Any]:
    """With a device the engine itself tells its layers; without one only the builder's log does."""
    engine = trt.Runtime(logger).deserialize_cuda_engine(serialized)
    if engine is None:
        return {"inspected": False}
    inspector = engine.create_engine_inspector()
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    write_made(folder / INSPECTION, text.encode())
    return {"inspected": True, "device_memory": int(getattr(engine, "device_memory_size_v2", 0))}


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1])))
