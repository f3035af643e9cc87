"""Which command makes this part of a run? Lines that a shell takes as they are."""

from __future__ import annotations

import shlex
from typing import Literal

from gacq_deploy.run_directory import RunDirectory

Part = Literal["artifact", "graphs", "engines", "parity", "bench", "sensitivity", "report", "images"]


def command_for(part: Part, run: RunDirectory) -> str:
    """Return the command line that makes one part of ``run``, its paths quoted."""
    root = shlex.quote(str(run.root))
    if part == "artifact":
        recipe = shlex.quote(str(run.recipe_path)) if run.recipe_path.is_file() else "RECIPE"
        return f"gacq-deploy calibrate -r {recipe} -o {root}"
    if part == "images":
        return f"gacq-deploy run {root} -o images.png"
    verbs = {"graphs": "export --onnx", "engines": "build-trt"}
    return f"gacq-deploy {verbs.get(part, part)} {root}"
