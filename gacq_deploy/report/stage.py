"""How does it become one file that opens anywhere? A template, its style and script inside, and no way out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from markupsafe import Markup

from gacq_deploy import __version__
from gacq_deploy.artifact.diagnostics import Diagnostics
from gacq_deploy.artifact.records import PolishRecord
from gacq_deploy.errors import shell_command
from gacq_deploy.inspection.artifact import Inspection
from gacq_deploy.inspection.page import digest_page, shown_by
from gacq_deploy.inspection.verify import verify_records
from gacq_deploy.parity.report import ParityReport
from gacq_deploy.progress import SILENT, Reporter
from gacq_deploy.recipe.sections import Recipe
from gacq_deploy.report import figures, tables
from gacq_deploy.report.collect import Collected, Missing, collect
from gacq_deploy.report.self_contained import TEMPLATES, content_policy, page_environment
from gacq_deploy.report.sensitivity import SensitivityPart, sensitivity_part
from gacq_deploy.report.summary import big_numbers, heading, learning
from gacq_deploy.report.verdict import State, Verdict, judge_run
from gacq_deploy.run_directory import RunDirectory, refuse_own_file
from gacq_deploy.storage.files import write_bytes
from gacq_deploy.storage.outputs import require_output

PartT = TypeVar("PartT")
ShownT = TypeVar("ShownT")


@dataclass(frozen=True)
class ReportPage:
    """What was written."""

    path: Path
    bytes: int
    verdict: State
    sentences: tuple[str, ...]
    missing: dict[str, str]
    """Section -> why it has no data, and what would make it."""


def write_report(
    run: RunDirectory,
    path: Path | None = None,
    *,
    images: bool = True,
    pipeline: str | None = None,
    report: Reporter = SILENT,
) -> ReportPage:
    """Write everything that stands in ``run`` as one HTML page, whole or not at all.

    Args:
        run: the directory; only ``report.html`` in it is written.
        path: another place for the page.
        images: generate the same images with both graphs.
        pipeline: folder or hub id of the pipeline that decodes latents, where it is no longer where the recipe
            found it.
        report: hears of progress.

    Raises:
        ArtifactError: ``run`` is no run directory.
        ResourceError: the disk is full, or another process works in the directory.
        UsageError: the page cannot be written there, or its folder is not there.
    """
    if path is not None:
        require_output(path, ".html")
        refuse_own_file(path, but=run.report_html.name)
    found = collect(run, images=images, pipeline=pipeline, report=report)
    verdict = judge_run(found)
    page = render(found, verdict).encode()
    target = path or run.report_html
    if target.parent.resolve() == run.root.resolve():
        with run.writing():
            write_bytes(target, page)
    else:
        write_bytes(target, page)
    parts = (
        "recipe", "inspection", "diagnostics", "export", "compiled", "parity", "bench", "sensitivity",
        "pictures",
    )  # fmt: skip
    values = {part: getattr(found, part) for part in parts}
    missing = {
        part: f"{value.reason} {value.remedy}".rstrip()
        for part, value in values.items()
        if isinstance(value, Missing)
    }
    return ReportPage(target, len(page), verdict.state, verdict.sentences, missing)


def ensure_report(run: RunDirectory, *, report: Reporter = SILENT) -> Path:
    """Write ``report.html`` unless the page that lies there shows what stands in ``run`` now; return its path.

    Raises:
        ArtifactError, ResourceError, UsageError: as :func:`write_report`.
    """
    shows = digest_page(run, verify_records(run).document(), images=True)
    if shown_by(run.report_html) != shows:
        write_report(run, report=report)
    return run.report_html


def render(found: Collected, verdict: Verdict) -> str:
    """Return the page. Whatever comes from the run is escaped; the page's own policy forbids every request."""
    style, script = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    return (
        page_environment(TEMPLATES)
        .get_template("page.html.j2")
        .render(
            policy=content_policy(style, script),
            style=Markup(style),
            script=Markup(script),
            version=__version__,
            found=found,
            verdict=verdict,
            stale={link.name: link for link in verdict.broken},
            most_panels=figures.MOST_PANELS,
            recalibrate=shell_command("calibrate", "-r", found.run.recipe_path, "-o", found.run.beside),
            **_parts(found, verdict),
        )
    )


def _parts(found: Collected, verdict: Verdict) -> dict[str, Any]:
    """Return the tables and figures of every section; None, empty or :class:`Missing` where there is no data."""
    diagnostics = found.diagnostics if isinstance(found.diagnostics, Diagnostics) else None
    failed = [gate.metric for gate in verdict.gates if not gate.holds]
    parts = {
        "heading": heading(found),
        "numbers": big_numbers(found),
        "pictures": None if isinstance(found.pictures, Missing) else found.pictures,
        "errors": _error_figures(found, diagnostics),
        "learned": learning(found),
        "gates": tables.gate_table(verdict.gates) if verdict.gates else None,
        "engines": tables.engine_table(found),
        "files": _shown(found.export, tables.file_table),
        "compiled": _shown(found.compiled, tables.compiled_table),
        "speeds": _shown(found.bench, lambda bench: (tables.ratio_table(bench), tables.speed_table(bench))),
        "skipped": _shown(found.bench, tables.skipped_engines) or (),
        **_weighting(diagnostics),
        "notes": _notes(found, diagnostics),
        "steps": _steps_sentence(found.parity),
        "polish": _polish_sentence(found.inspection),
        "sensitivity": _shown(found.sensitivity, lambda study: sensitivity_part(study, failed)),
        "layers": _shown(found.inspection, tables.layer_table),
        "blocks": _shown(found.inspection, tables.block_table),
        "parameters": _shown(found.inspection, tables.parameter_table),
        "settings": _settings(found.recipe),
        "chain": tables.chain_table(found),
        "facts": tables.facts(found),
    }
    return {**parts, "glance": _glances(found, parts)}


def _shown(record: PartT | Missing, show: Callable[[PartT], ShownT]) -> ShownT | None:
    """Return what ``show`` makes of a record, which may be false (a failed one) and still be there."""
    return None if isinstance(record, Missing) else show(record)


def _weighting(diagnostics: Diagnostics | None) -> dict[str, Any]:
    if diagnostics is None:
        return {"stages": None, "even": "", "evens": None, "weightless": False, "panels": ()}
    return {
        "stages": figures.stage_table(diagnostics),
        "even": figures.even_sentence(diagnostics),
        "evens": figures.even_table(diagnostics),
        "weightless": not diagnostics.stages,
        "panels": figures.stage_panels(diagnostics),
    }


def _glances(found: Collected, parts: dict[str, Any]) -> dict[str, str]:
    """Return what the line of a folded section says of its inside."""
    stages: tables.ReportTable | None = parts["stages"]
    study: SensitivityPart | None = parts["sensitivity"]
    links = [link for link in found.chain.links if link.status != "absent"]
    held = sum(link.is_intact for link in links)
    layers: tables.ReportTable | None = parts["layers"]
    return {
        "weights": _weights_glance(stages, parts["even"], len(parts["notes"])),
        "sensitivity": "" if study is None else study.glance,
        "layers": "" if layers is None else layers.caption,
        "settings": f"{held} of {len(links)} digests hold",
    }


def _weights_glance(stages: tables.ReportTable | None, even: str, notes: int) -> str:
    said = [stages.caption if stages is not None else even.partition(":")[0]]
    said += [f"{notes} note{'s' if notes > 1 else ''}"] if notes else []
    return ", ".join(filter(None, said))


def _error_figures(found: Collected, diagnostics: Diagnostics | None) -> tuple[figures.Figure, ...]:
    drawn = [figures.stage_error_figure(diagnostics) if diagnostics else None]
    if isinstance(found.parity, ParityReport):
        drawn += [figures.bucket_error_figure(found.parity), figures.trajectory_figure(found.parity)]
    return tuple(figure for figure in drawn if figure is not None)


def _notes(found: Collected, diagnostics: Diagnostics | None) -> tuple[tuple[str, str], ...]:
    """Return (stage, what was said) once each, in the order of calibration."""
    said: list[tuple[str, str]] = []
    if diagnostics is not None:
        said += [(stage.stage, note) for stage in diagnostics.stages for note in stage.notes]
    if isinstance(found.inspection, Inspection):
        said += [(block.name, note) for block in found.inspection.blocks for note in block.notes]
        said += _polish_notes(found.inspection.polish)
    return tuple(dict.fromkeys(said))


def _steps_sentence(parity: ParityReport | Missing) -> str:
    if not isinstance(parity, ParityReport) or not parity.step_policy.float_timesteps:
        return ""
    chosen, steps = parity.step_policy.float_timesteps, parity.step_policy.timesteps
    return (
        f"{len(chosen)} of {len(steps)} sampler steps run in float (timesteps {', '.join(map(str, chosen))}). "
        "Trajectories and images are judged as this mix makes them, single steps as the INT8 engine does."
    )


def _polish_sentence(inspection: Inspection | Missing) -> str:
    if isinstance(inspection, Missing) or inspection.polish is None:
        return ""
    polish = inspection.polish
    trained = ", ".join(kind.replace("_", " ") for kind in polish.parameters)
    change = f" ({polish.loss_end / polish.loss_start - 1:+.0%})" if polish.loss_start > 0 else ""
    kept = "Kept." if polish.kept else "Not kept: the model was better before, and was restored."
    return (
        f"{polish.steps} steps on {trained}; objective {polish.objective}; loss {polish.loss_start:.4g} before, "
        f"{polish.loss_end:.4g} after{change}. {kept}"
    )


def _polish_notes(polish: PolishRecord | None) -> list[tuple[str, str]]:
    if polish is None:
        return []
    notes = list(polish.notes)
    if not polish.kept:
        notes.append("The model was better before the polish; its parameters were restored.")
    return [("polish", note) for note in notes]


def _settings(recipe: Recipe | Missing) -> str:
    if isinstance(recipe, Missing):
        return ""
    return yaml.safe_dump(recipe.document(), sort_keys=False, allow_unicode=True, width=80)
