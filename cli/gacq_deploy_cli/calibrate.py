"""`calibrate`: learn rounding and scales for a model under a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gacq_deploy_cli.console import Output
from gacq_deploy_cli.options import common, needs_extra, preset_option, recipe_option, set_option, with_output
from gacq_deploy_cli.table import Table
from gacq_deploy_cli.units import duration, size

if TYPE_CHECKING:
    from gacq_deploy.artifact.artifact import CalibrationArtifact
    from gacq_deploy.calibration.cost.estimate import CalibrationEstimate
    from gacq_deploy.recipe.sections import Recipe
    from gacq_deploy.run_directory import RunDirectory


@click.command(short_help="Learn sample weights, rounding and scales under a recipe.")
@recipe_option
@click.option("--model", help="Model folder, hub id or builtin:NAME; replaces model.source of the recipe.")
@click.option(
    "--lora",
    "loras",
    multiple=True,
    metavar="FILE[:SCALE]",
    help="LoRA to fuse into the model first, repeatable; replaces model.loras of the recipe.",
)
@click.option("-o", "--output-dir", type=click.Path(path_type=Path), required=True, help="Run directory.")
@click.option(
    "--prompts",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Prompts of a text-to-image model's trajectories: text (one a line), .json or .jsonl; default: built-in ones.",
)
@preset_option
@set_option
@click.option("--seed", type=click.IntRange(min=0), help="Seed of samples and learning.")
@click.option("--fresh", is_flag=True, help="Forget what is in the directory and start over.")
@click.option("--dry-run", is_flag=True, help="Print the plan with time, memory and disk; write nothing.")
@common
@with_output
def calibrate(
    output: Output,
    recipe: str | None,
    model: str | None,
    loras: tuple[str, ...],
    output_dir: Path,
    prompts: Path | None,
    preset: str | None,
    overrides: tuple[str, ...],
    seed: int | None,
    fresh: bool,
    dry_run: bool,
) -> None:
    """Collect samples; learn sample weights, rounding and scales block by block; polish the whole model.

    The weights are GAC-style (arXiv 2602.01289), reconstructed from public descriptions.

    Writes recipe.yaml, samples.safetensors, work/ and artifact/ into the run directory. Interrupted or
    killed, the same command resumes; finished, it does nothing.
    """
    from gacq_deploy.processes.group import joined_group
    from gacq_deploy.recipe.load import load_recipe
    from gacq_deploy.run_directory import RunDirectory

    directory = RunDirectory(output_dir)
    options = recipe_sections(model=model, seed=seed, prompts=prompts, loras=loras)
    if recipe is None:
        recipe = _suiting(output, options.get("model", {}))
    resolved = load_recipe(recipe, overrides, preset=preset, **options)
    if dry_run:
        _show_plan(output, resolved, directory, fresh=fresh)
        return
    with needs_extra("calibrate", "calibrate"):
        from gacq_deploy.calibration.stage import calibrate as run_calibration
        from gacq_deploy.models.trajectories.worker import help_calibrate
    with joined_group() as group, output.progress() as report:
        if not group.is_main:
            help_calibrate(resolved, group)
            return
        artifact = run_calibration(resolved, directory, fresh=fresh, report=report, group=group)
    document = _document(output_dir, resolved, artifact)
    output.emit(document, _summary(artifact), *_after(artifact), _next_step(output_dir))


def _suiting(output: Output, model: Mapping[str, Any]) -> str:
    """Return the built-in recipe that suits the model, and say which and why."""
    from gacq_deploy.errors import UsageError
    from gacq_deploy.recipe.load import builtin_recipes
    from gacq_deploy.recipe.sections import ModelSection

    if "source" not in model:
        raise UsageError(
            "Neither a model nor a recipe is named.",
            "Pass --model FOLDER, and the recipe that suits it is taken; or -r NAME, one of: "
            f"{', '.join(builtin_recipes())}.",
        )
    with needs_extra("calibrate", "calibrate"):
        from gacq_deploy.models.recipe_choice import choose_recipe
        from gacq_deploy.models.source import find_source
    choice = choose_recipe(find_source(ModelSection(**model), weights=False))
    output.note(f"recipe: {choice.recipe}, for {choice.why} (-r NAME takes another)")
    return choice.recipe


def _document(directory: Path, recipe: Recipe, artifact: CalibrationArtifact) -> dict[str, Any]:
    blocks = [block.model_dump(mode="json") for block in artifact.history]
    return {
        "directory": str(directory),
        "artifact": artifact.manifest_digest,
        "recipe": recipe.name,
        "tensors": len(artifact.plan),
        "samples_sha256": artifact.samples_sha256,
        "blocks": blocks,
        "polish": None if artifact.polish is None else artifact.polish.model_dump(mode="json"),
        "output_sqnr_db": _output_sqnr(artifact),
        "notes": _notes(artifact),
    }


def recipe_sections(
    *,
    model: str | None = None,
    seed: int | None = None,
    prompts: Path | None = None,
    loras: Sequence[str] = (),
) -> dict[str, dict[str, Any]]:
    """Return what the options say of a recipe's sections; folders are kept as absolute paths, prompts as they are.

    Raises:
        click.BadParameter: what follows a LoRA's last colon is no number.
    """
    sections: dict[str, dict[str, Any]] = {"model": {}, "samples": {}, "calibration": {}}
    if model is not None:
        from gacq_deploy.recipe.load import absolute_source

        sections["model"]["source"] = absolute_source(model)
    if loras:
        sections["model"]["loras"] = [_lora(text) for text in loras]
    if seed is not None:
        sections["samples"]["seed"] = sections["calibration"]["seed"] = seed
    if prompts is not None:
        from gacq_deploy.samples.prompts import read_prompts

        sections["samples"]["prompts"] = read_prompts(prompts)
    return {name: values for name, values in sections.items() if values}


def _lora(text: str) -> dict[str, Any]:
    """Return what ``FILE[:SCALE]`` stands for."""
    # a file whose own name holds a colon is taken as it is
    file, _, scale = (text, "", "1") if Path(text).expanduser().exists() else text.rpartition(":")
    path = Path(file or text).expanduser()
    try:
        return {"source": str(path.resolve()), "scale": float(scale if file else 1)}
    except ValueError:
        raise click.BadParameter(
            f"'{text}' is neither a file nor FILE:SCALE with a number.", param_hint="--lora"
        ) from None


def _summary(artifact: CalibrationArtifact) -> Table:
    rows = [_stage_row(artifact, b.name, b.sites, b.loss_start, b.loss_end) for b in artifact.history]
    polish = artifact.polish
    if polish is not None:
        trained = len(artifact.parameters)
        rows.append(_stage_row(artifact, "polish", trained, polish.loss_start, polish.loss_end))
    title = f"artifact {artifact.manifest_digest[:12]}: {len(artifact.plan)} quantized tensors"
    columns = ["stage", "layers", "loss before", "loss after", "weights", "effective", "alignment"]
    return Table(title, columns, rows)


def _stage_row(
    artifact: CalibrationArtifact, name: str, count: int, before: float, after: float
) -> tuple[object, ...]:
    stage = None if artifact.diagnostics is None else artifact.diagnostics.stage(name)
    if stage is None:
        return (name, count, f"{before:.4g}", f"{after:.4g}", "", "", "")
    from gacq_deploy.artifact.diagnostics import mean_between_groups

    cosines = [
        f"{mean_between_groups(m):.2f}" for m in (stage.cosine_before, stage.cosine_after) if m is not None
    ]
    effective = f"{stage.effective_samples / len(stage.weights):.0%}"
    return (name, count, f"{before:.4g}", f"{after:.4g}", stage.mode, effective, " to ".join(cosines))


def _output_sqnr(artifact: CalibrationArtifact) -> dict[str, list[float]]:
    if artifact.diagnostics is None:
        return {}
    levels: dict[str, list[float]] = {}
    for stage, values in artifact.diagnostics.error_sqnr_db.items():
        levels[stage] = [round(float(value), 3) for value in values]
    return levels


def _notes(artifact: CalibrationArtifact) -> list[str]:
    stages = () if artifact.diagnostics is None else artifact.diagnostics.stages
    return [f"{stage.stage}: {note}" for stage in stages for note in stage.notes]


def _after(artifact: CalibrationArtifact) -> tuple[str, ...]:
    """Return what the numbers mean in one line, and every warning or fallback."""
    lines = [
        f"output SQNR after {stage}: {min(values):.1f} dB at the worst timestep, "
        f"{sum(values) / len(values):.1f} dB on average"
        for stage, values in _output_sqnr(artifact).items()
    ]
    return (*lines, *(f"note: {note}" for note in _notes(artifact)))


def _next_step(directory: Path) -> str:
    return f"Next: gacq-deploy export --onnx {directory}"


def _show_plan(output: Output, recipe: Recipe, directory: RunDirectory, *, fresh: bool) -> None:
    with needs_extra("calibrate", "calibrate --dry-run"):
        from gacq_deploy.calibration.cost.estimate import estimate_calibration
        from gacq_deploy.calibration.resume import check_same_recipe
    if not fresh:
        check_same_recipe(recipe, directory)
    estimate = estimate_calibration(recipe)
    output.emit({"recipe": recipe.document(), "estimate": asdict(estimate)}, *_plan_tables(estimate))


def _plan_tables(estimate: CalibrationEstimate) -> tuple[Table | str, ...]:
    rows = [
        ("model", f"{estimate.family}, {estimate.parameters / 1e6:.2f} M parameters"),
        ("layers", f"{estimate.quantized_modules} quantized, {estimate.float_modules} float"),
        *_unused(estimate.unused_modules),
        ("quantized tensors", len(estimate.sites)),
        ("blocks", f"{len(estimate.blocks)}, learned in order"),
        ("samples", f"{estimate.samples} to learn from, {estimate.validation_samples} held out"),
        ("sample weights", estimate.weights),
        ("polish", estimate.polish),
        ("time", f"about {duration(estimate.seconds)} on this machine"),
        (
            "memory",
            f"about {size(estimate.memory_mb * 2**20)}, of it {size(estimate.mapped_mb * 2**20)} of weights mapped "
            "from their files",
        ),
        ("disk", f"about {size(estimate.disk_mb * 2**20)}"),
        ("export", f"about {size(estimate.export_mb * 2**20)} of memory"),
    ]
    sites = [_site_row(site) for site in estimate.sites]
    return (
        Table("quantized tensors", ["tensor", "bits", "range", "shares its scale in"], sites),
        Table("plan (nothing was written)", ["what", "estimate"], rows),
    )


def _site_row(site: Mapping[str, object]) -> tuple[object, ...]:
    shared = "" if site["tie"] == site["site"] else site["tie"]
    return (site["site"], _bits(site), site["range"], shared)


def _unused(names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    said = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
    return (("layers whose result nothing uses", f"{len(names)}, float: {said}"),) if names else ()


def _bits(site: Mapping[str, object]) -> object:
    return f"{site['bits']} in blocks of {site['block']}" if "block" in site else site["bits"]
