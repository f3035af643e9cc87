"""Which engines exist? One table of strings: a backend's library is imported when its name is asked for."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from gacq_deploy.backends.base import Engine
from gacq_deploy.backends.saturation import require_exact
from gacq_deploy.errors import BackendUnavailable, UsageError

BACKENDS: dict[str, str] = {
    "ort-cpu": "gacq_deploy.backends.ort:OrtCpuEngine",
    "ort-cuda": "gacq_deploy.backends.ort:OrtCudaEngine",
    "openvino": "gacq_deploy.backends.openvino:OpenVinoEngine",
}
"""Engine name -> ``module:Class``; the class takes ``(model, *, threads, optimize)``."""

EXTRAS: dict[str, str] = {"ort-cpu": "cpu", "ort-cuda": "gpu", "openvino": "openvino"}
"""Engine name -> the extra that installs its library."""


def open_engine(
    name: str, model: Path | bytes, *, threads: int = 0, optimize: bool = True, allow_inexact: bool = False
) -> Engine:
    """Open an ONNX graph in the named engine.

    Args:
        name: a key of :data:`BACKENDS`.
        model: an ONNX file, or the bytes of one that has no external data.
        threads: CPU threads of one run; 0 lets the library choose.
        optimize: False keeps every node as it is written, where the backend can.
        allow_inexact: open it even where 8-bit sums overflow on this processor; only to measure what that does.

    Raises:
        UsageError: unknown name, negative threads, or the backend cannot switch its optimizations off.
        BackendUnavailable: its package, execution provider or device is missing, or its 8-bit sums would overflow on
            this processor.
        ArtifactError: the file is missing, corrupt, or its external data is not its own.
        EngineError: the graph cannot run in this engine.
    """
    if threads < 0:
        raise UsageError(
            f"{threads} threads were asked for.", "Pass 1 or more, or 0 for the library's own choice."
        )
    backend = load_backend(name)
    if not allow_inexact:
        require_exact(name, model)
    engine: Engine = backend(model, threads=threads, optimize=optimize)
    return engine


def load_backend(name: str) -> Any:
    """Import the class behind an engine name.

    Raises:
        UsageError: unknown name.
        BackendUnavailable: the library is not installed or does not load; the hint is the pip line.
    """
    if name not in BACKENDS:
        raise UsageError(f"Engine '{name}' is not known.", f"Choose one of: {', '.join(BACKENDS)}.")
    return import_attribute(BACKENDS[name], what=f"Engine '{name}'", hint=pip_line(name))


def pip_line(name: str) -> str:
    """Return the command that installs what the engine ``name`` needs."""
    return f"pip install 'gacq-deploy[{EXTRAS[name]}]'"


def import_attribute(target: str, *, what: str, hint: str) -> Any:
    """Import ``module:attribute``; only a failure of that import counts as a missing library.

    Raises:
        BackendUnavailable: a library outside this package is missing or its shared objects do not load.
    """
    module, _, attribute = target.partition(":")
    try:
        loaded = import_module(module)
    except ImportError as error:
        if (error.name or "").startswith("gacq_deploy"):
            raise  # our own mistake, not a missing package
        raise BackendUnavailable(f"{what} is not available: {error}.", hint) from error
    except OSError as error:
        raise BackendUnavailable(f"{what} is installed but does not load: {error}.", hint) from error
    return getattr(loaded, attribute)
