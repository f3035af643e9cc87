"""Which file of a run does an engine run best, and may it?"""

from __future__ import annotations

from pathlib import Path

from gacq_deploy.build_trt.open import is_compiled, locate_engine
from gacq_deploy.engines.catalogue import CANONICAL, engine_named
from gacq_deploy.errors import ArtifactError, quoted
from gacq_deploy.export.record import load_export
from gacq_deploy.parity.verdict import require_not_failed
from gacq_deploy.run_directory import RunDirectory


def graph_for(directory: RunDirectory, engine: str, *, allow_failed: bool = False) -> Path:
    """Return the exported graph that ``engine`` runs best, or its engine, after every digest was checked.

    Args:
        directory: the run.
        engine: the name of one in the catalogue.
        allow_failed: take it even if it failed parity on this machine.

    Raises:
        UsageError: unknown engine.
        ArtifactError: not exported, stale, altered, or what this engine needs was not exported or built.
        GateError: too little of the engine is INT8, or the engine failed parity on this machine.
    """
    record = engine_named(engine)
    if is_compiled(engine):
        located = locate_engine(directory, engine)
        if not allow_failed:
            require_not_failed(directory, CANONICAL, engine, key=located.folder.name)
        return located.path
    exported = load_export(directory)
    for name in record.graphs:
        if name in exported.files:
            if not allow_failed:
                require_not_failed(directory, name, record.runner, export=exported)
            return directory.onnx / name
    raise ArtifactError(
        f"Engine '{engine}' needs {' or '.join(record.graphs)}, exported were {', '.join(exported.graphs)}.",
        f"Run `gacq-deploy export --onnx {quoted(directory.root)} --target {record.name}`.",
    )
