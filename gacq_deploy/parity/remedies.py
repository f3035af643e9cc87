"""A gate failed: what helps, in which order, with which numbers? From the gate's own distance."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gacq_deploy.errors import ArtifactError
from gacq_deploy.parity.report import FailedGate, ParityReport, load_report
from gacq_deploy.recipe.presets import stronger_preset
from gacq_deploy.recipe.sections import Recipe
from gacq_deploy.run_directory import RunDirectory

_OF_FIDELITY = frozenset({"budget", "single", "mixed"})
"""Evidence that says how much INT8 costs; the others say that something computes wrongly."""
_MARGIN_DB = 1.0
"""Parity measures other states than sensitivity."""
_STEP_DB = 6.0
"""Half the error: what to ask for where a gate is no number of decibels."""


@dataclass(frozen=True)
class Remedy:
    """Something that may help: why, and the words of the command (without the program's name)."""

    why: str
    command: tuple[str | Path, ...]


def say_gate(gate: FailedGate) -> str:
    """Return a failed gate in words: ``int8.onnx@ort-cpu: PSNR of same-seed images, mean (dB) is 12.1, needs 30``."""
    value = "not measured" if gate.value is None else f"{gate.value:.4g}"
    needs = f"needs {gate.bound:g}" if gate.at_least else f"at most {gate.bound:g}"
    return f"{gate.candidate}: {gate.meaning} is {value}, {needs}"


def needed_sqnr_db(report: ParityReport) -> float | None:
    """Return the least SQNR of single steps, in whole dB, at which the failed gates of fidelity may hold.

    A missing decibel of PSNR is asked of the SQNR; a missing cosine or SSIM asks for half the error. None: none failed.
    """
    asked = [_asked(gate, report) for gate in report.failed_gates if gate.evidence in _OF_FIDELITY]
    known = [db for db in asked if db is not None]
    return float(math.ceil(max(known))) if known else None


def _asked(gate: FailedGate, report: ParityReport) -> float | None:
    now = report.fidelity.get(gate.candidate, {}).get("eps_sqnr_db")
    if gate.metric == "eps_sqnr_db":
        return gate.bound + _MARGIN_DB
    if now is None or gate.value is None:
        return None
    return now + (gate.bound - gate.value if gate.metric == "image_psnr_db" else _STEP_DB) + _MARGIN_DB


def remedies(report: ParityReport, run: RunDirectory, recipe: Recipe) -> tuple[Remedy, ...]:
    """Return what may make the failed gates hold, in order; nothing where INT8 is not to blame."""
    if not any(gate.evidence in _OF_FIDELITY for gate in report.failed_gates):
        return ()
    found = []
    if (preset := stronger_preset(recipe)) is not None:
        where = run.root.with_name(f"{run.root.name}-{preset}")
        found.append(
            Remedy(
                "learn with more effort",
                ("calibrate", "-r", run.recipe_path, "--preset", preset, "-o", where),
            )
        )
    steps = max(1, recipe.runtime.steps // 10) + (recipe.runtime.step_policy.float_steps or 0)
    found.append(
        Remedy(
            f"run {steps} of {recipe.runtime.steps} sampler steps in float, then judge again",
            (
                "calibrate",
                "-r",
                run.recipe_path,
                "--set",
                f"runtime.step_policy.float_steps={steps}",
                "-o",
                run.root,
            ),
        )
    )
    if (target := needed_sqnr_db(report)) is not None:
        found.append(
            Remedy("find the layers to leave float", ("sensitivity", run.root, "--min-sqnr", f"{target:g}"))
        )
    return tuple(found)


def advice(gates: Iterable[FailedGate]) -> tuple[str, ...]:
    """Return what to do about gates that say that something computes wrongly, once each."""
    return tuple(dict.fromkeys(gate.advice for gate in gates if gate.evidence not in _OF_FIDELITY))


def failed_report(run: RunDirectory) -> ParityReport | None:
    """Return the run's verdict if it failed, and is about what the run holds now."""
    try:
        report = load_report(run.parity_json)
    except ArtifactError:
        return None
    return None if report or report.why_stale(run) is not None else report
