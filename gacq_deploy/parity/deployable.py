"""Which file of a run does an engine run best, and may it?"""

from __future__ import annotations

from pathlib import Path

from gacq_deploy.backends.trt.library import TRT_NAMES
from gacq_deploy.build_trt.open import is_compiled, locate_plan
from gacq_deploy.errors import ArtifactError, UsageError
from gacq_deploy.export.record import CANONICAL, CPU, FLOAT, load_export
from gacq_deploy.parity.verdict import require_not_failed
from gacq_deploy.run_directory import RunDirectory

FLOAT_ENGINE = "float"
GRAPHS: dict[str, tuple[str, ...]] = {
    "ort-cpu": (CPU, CANONICAL),
    "ort-cuda": (CANONICAL,),
    "openvino": (CANONICAL,),
    FLOAT_ENGINE: (FLOAT,),
}
"""Engine -> exported graphs it takes, the best one first."""
ENGINES = (*GRAPHS, *TRT_NAMES)


def graph_for(directory: RunDirectory, engine: str, *, allow_failed: bool = False) -> Path:
    """Return the exported graph that ``engine`` runs best, or its plan, after every digest was checked.

    Args:
        directory: the run.
        engine: one of :data:`ENGINES`.
        allow_failed: take it even if it failed parity on this machine.

    Raises:
        UsageError: unknown engine.
        ArtifactError: not exported, stale, altered, or what this engine needs was not exported or built.
        GateError: too little of the plan is INT8, or the engine failed parity on this machine.
    """
    if engine not in ENGINES:
        raise UsageError(f"Engine '{engine}' is not known.", f"Choose one of: {', '.join(ENGINES)}.")
    if is_compiled(engine):
        plan = locate_plan(directory, engine)
        if not allow_failed:
            require_not_failed(directory, CANONICAL, engine, key=plan.folder.name)
        return plan.path
    record = load_export(directory)
    backend = "ort-cpu" if engine == FLOAT_ENGINE else engine
    for name in GRAPHS[engine]:
        if name in record.files:
            if not allow_failed:
                require_not_failed(directory, name, backend, export=record)
            return directory.onnx / name
    raise ArtifactError(
        f"Engine '{engine}' needs {' or '.join(GRAPHS[engine])}, exported were {', '.join(record.graphs)}.",
        f"Run `gacq-deploy export --onnx {directory.root} --target both`.",
    )
