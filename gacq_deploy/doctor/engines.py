"""Which ONNX Runtime is installed, and which engines and execution providers really open?"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from gacq_deploy.backends.wheels import onnxruntime_wheels, require_one_onnxruntime
from gacq_deploy.doctor.ask import Reply, ask
from gacq_deploy.doctor.findings import Check
from gacq_deploy.doctor.graph import full_range_graph, one_node_graph
from gacq_deploy.engines.attributes import import_attribute
from gacq_deploy.engines.catalogue import REFERENCE, engine_named, known_engines
from gacq_deploy.engines.open import open_engine
from gacq_deploy.errors import BackendUnavailable, GacqError

_CUDA = "CUDAExecutionProvider"
_CUDA_ENGINE = "ort-cuda"
"""Its provider is tried in a process of its own first."""
_ELSEWHERE = ("CPUExecutionProvider", _CUDA, "AzureExecutionProvider")
"""Opened as engines; the last calls a server and is never used here."""
_CUDA_HINT = (
    "It needs an NVIDIA GPU, CUDA 13 and cuDNN 9. On a machine without: "
    "pip uninstall -y onnxruntime-gpu; pip install 'gacq-deploy[cpu]'"
)
_MISSING = re.compile(r"(lib[\w.+-]+\.so[\d.]*): cannot open shared object")


def wheels() -> Check:
    """Name the wheel that owns `onnxruntime`; two of them overwrite each other."""
    name = "onnxruntime wheel"
    found = onnxruntime_wheels()
    if not found:
        return Check(
            name, "fail", "not installed", "pip install 'gacq-deploy[cpu]' (or [gpu] on a CUDA machine)"
        )
    try:
        require_one_onnxruntime()
    except BackendUnavailable as error:
        return Check(name, "fail", error.message, error.hint)
    return Check(name, "ok", ", ".join(f"{wheel} {version}" for wheel, version in found.items()))


def opened() -> Iterator[Check]:
    """Really open and run each engine that needs no run directory."""
    for record in known_engines().values():
        if record.name == _CUDA_ENGINE:
            yield _cuda_engine()
        elif not record.compiled and not record.runs_in:
            yield _engine(record.name, needed=record.name == REFERENCE)


def providers() -> Iterator[Check]:
    """Create a session on each other provider that this ONNX Runtime was built with."""
    for provider in _offered():
        if provider not in _ELSEWHERE:
            reply = ask("provider", provider)
            name = f"provider {provider.removesuffix('ExecutionProvider')}"
            if reply.answer.get("opens"):
                yield Check(name, "ok", "a session was created on it")
            else:
                yield Check(name, "absent", f"offered, but it cannot be created: {why_not(reply)}")


def why_not(reply: Reply) -> str:
    """Say why a provider was not created; ONNX Runtime writes that to stderr and goes on without it."""
    missing = sorted(set(_MISSING.findall(reply.said)))
    if missing:
        return f"{', '.join(missing)} is not here"
    return reply.problem or "ONNX Runtime gave another one"


def _offered() -> tuple[str, ...]:
    try:
        load = import_attribute("gacq_deploy.backends.ort:offered_providers", what="ONNX Runtime", hint="")
    except GacqError:
        return ()  # the wheel's own check says so
    offered: tuple[str, ...] = load()
    return offered


def _cuda_engine() -> Check:
    """Try the provider in a child process first: its libraries may be the wrong ones."""
    if _CUDA in _offered():
        reply = ask("provider", _CUDA)
        if not reply.answer.get("opens"):
            return Check(
                f"engine {_CUDA_ENGINE}", "fail", f"{_CUDA} cannot be created: {why_not(reply)}", _CUDA_HINT
            )
    return _engine(_CUDA_ENGINE, needed="onnxruntime-gpu" in onnxruntime_wheels())


def _engine(name: str, *, needed: bool) -> Check:
    try:
        with open_engine(name, one_node_graph()) as engine:
            doubled = engine.run({"x": np.ones((2, 3), np.float32)})["y"]
            if not bool(np.array_equal(doubled, np.full((2, 3), 2, np.float32))):
                return Check(f"engine {name}", "fail", f"{engine.label} computed 1 + 1 = {doubled.flat[0]}")
            if unfit := engine_named(name).why_unfit(full_range_graph()):
                reason, remedy = unfit
                return Check(
                    f"engine {name}",
                    "warning",
                    f"{engine.label}; of a graph with weights of full range: {reason}",
                    f"Such a graph is refused here. {remedy}",
                )
            return Check(f"engine {name}", "ok", engine.label)
    except BackendUnavailable as error:
        return Check(f"engine {name}", "fail" if needed else "absent", error.message, error.hint)
    except GacqError as error:
        return Check(f"engine {name}", "fail", error.message, error.hint)
