"""How is a graph opened in an engine?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gacq_deploy.engines.catalogue import engine_named
from gacq_deploy.errors import UsageError

if TYPE_CHECKING:
    from gacq_deploy.backends.base import Engine


THREADS_MAX = 1024


def check_threads(threads: int) -> None:
    """Refuse a number of threads that no library takes: of too many each one dies without a word.

    Raises:
        UsageError: below 0, or more than any machine has.
    """
    if not 0 <= threads <= THREADS_MAX:
        raise UsageError(
            f"{threads} threads were asked for.",
            f"Pass 1 to {THREADS_MAX}, or 0 for the library's own choice.",
        )


def open_engine(
    name: str, model: Path | bytes, *, threads: int = 0, optimize: bool = True, allow_inexact: bool = False
) -> Engine:
    """Open an ONNX graph in the named engine.

    Args:
        name: of a record in the catalogue.
        model: an ONNX file, or the bytes of one that has no external data.
        threads: CPU threads of one run; 0 lets the library choose.
        optimize: False keeps every node as it is written, where the backend can.
        allow_inexact: open it even where it would be computed wrong on this machine; only to measure what that does.

    Raises:
        UsageError: unknown name, negative or too many threads, or the backend cannot switch its optimizations off.
        BackendUnavailable: its package, execution provider or device is missing, or it would compute the graph wrong
            on this machine.
        ArtifactError: the file is missing, corrupt, or its external data is not its own.
        EngineError: the graph cannot run in this engine.
    """
    check_threads(threads)
    record = engine_named(name)
    if record.compiled:
        raise UsageError(
            f"Engine '{name}' runs what was compiled for it, not ONNX graphs.",
            "Compile it with `gacq-deploy build-trt`.",
        )
    record.load()  # a missing library is said before the graph is read
    if not allow_inexact:
        record.require_fit(model)
    return record.open(model, threads=threads, optimize=optimize)
