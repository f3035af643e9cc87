"""Which command makes, or checks, this part of a run? Lines that a shell takes as they are."""

from __future__ import annotations

from typing import Literal

from gacq_deploy.errors import GacqError, shell_command
from gacq_deploy.run_directory import RunDirectory

RunPart = Literal[
    "recipe", "artifact", "graphs", "engines", "parity", "bench", "sensitivity", "report", "images"
]


def words_for(part: RunPart, run: RunDirectory) -> tuple[str, ...]:
    """Return the words of the command that makes one part of ``run``, or finds fault with its recipe."""
    root, recipe = str(run.root), str(run.recipe_path)
    others: dict[RunPart, tuple[str, ...]] = {
        "recipe": ("recipes", "validate", recipe),
        "artifact": ("calibrate", "-r", recipe, "-o", root),
        "graphs": ("export", "--onnx", root),
        "engines": ("build-trt", root),
        "images": ("run", root, "-o", "images.png"),
    }
    words = others.get(part, (part, root))
    # only these open the model; the recipe is not read for the others
    return (*words, *consent_for(run)) if part in ("artifact", "graphs") else words


def consent_for(run: RunDirectory) -> tuple[str, ...]:
    """Return the flag without which a function that the recipe names as its model is not run."""
    try:
        section = run.load_recipe().model
    except GacqError:
        return ()
    return ("--allow-python",) if section.is_foreign_code else ()


def command_for(part: RunPart, run: RunDirectory) -> str:
    """Return that command as a shell takes it."""
    return shell_command(*words_for(part, run))
