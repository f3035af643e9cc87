"""`calibrate`: learn rounding and scales for a model under a recipe."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gacq_deploy_cli.console import Output, Table, duration, size
from gacq_deploy_cli.options import common, needs_extra, recipe_option, set_option, with_output

if TYPE_CHECKING:
    from gacq_deploy.artifact import CalibrationArtifact
    from gacq_deploy.calibration.estimate import CalibrationEstimate
    from gacq_deploy.recipe import Recipe
    from gacq_deploy.run_directory import RunDirectory


@click.command(short_help="Learn rounding and scales for a model under a recipe.")
@recipe_option
@click.option("--model", help="Model folder, hub id or builtin:NAME; replaces model.source of the recipe.")
@click.option("-o", "--output-dir", type=click.Path(path_type=Path), required=True, help="Run directory.")
@set_option
@click.option("--seed", type=click.IntRange(min=0), help="Seed of samples and learning.")
@click.option("--fresh", is_flag=True, help="Forget what is in the directory and start over.")
@click.option("--dry-run", is_flag=True, help="Print the plan with time, memory and disk; write nothing.")
@common
@with_output
def calibrate(
    output: Output,
    recipe: str,
    model: str | None,
    output_dir: Path,
    overrides: tuple[str, ...],
    seed: int | None,
    fresh: bool,
    dry_run: bool,
) -> None:
    """Collect samples, then learn rounding and activation scales block by block.

    Writes recipe.yaml, samples.safetensors, work/ and artifact/ into the run directory. Interrupted or
    killed, the same command resumes; finished, it does nothing.
    """
    from gacq_deploy.recipe import load_recipe
    from gacq_deploy.run_directory import RunDirectory

    directory = RunDirectory(output_dir)
    resolved = load_recipe(recipe, (*overrides, *option_overrides(model, seed)))
    if dry_run:
        _show_plan(output, resolved, directory, fresh=fresh)
        return
    with needs_extra("calibrate", "calibrate"):
        from gacq_deploy.calibration.calibrate import calibrate as run_calibration
    with output.progress() as report:
        artifact = run_calibration(resolved, directory, fresh=fresh, report=report)
    document = {
        "directory": str(output_dir),
        "artifact": artifact.manifest_digest,
        "recipe": resolved.name,
        "tensors": len(artifact.plan),
        "samples_sha256": artifact.samples_sha256,
        "blocks": [block.model_dump(mode="json") for block in artifact.history],
    }
    output.emit(document, _summary(artifact), _next_step(output_dir))


def option_overrides(model: str | None, seed: int | None) -> tuple[str, ...]:
    """Return the overrides ``--model`` and ``--seed`` stand for; a folder is kept as an absolute path."""
    chosen: list[str] = []
    if model is not None:
        folder = Path(model).expanduser()
        chosen.append(f"model.source={json.dumps(str(folder.resolve()) if folder.exists() else model)}")
    if seed is not None:
        chosen += [f"samples.seed={seed}", f"calibration.seed={seed}"]
    return tuple(chosen)


def _summary(artifact: CalibrationArtifact) -> Table:
    rows = [(b.name, b.sites, f"{b.loss_start:.4g}", f"{b.loss_end:.4g}") for b in artifact.history]
    title = f"artifact {artifact.manifest_digest[:12]}: {len(artifact.plan)} quantized tensors"
    return Table(title, ["block", "layers", "loss before", "loss after"], rows)


def _next_step(directory: Path) -> str:
    return f"Next: gacq-deploy export --onnx {directory}"


def _show_plan(output: Output, recipe: Recipe, directory: RunDirectory, *, fresh: bool) -> None:
    with needs_extra("calibrate", "calibrate --dry-run"):
        from gacq_deploy.calibration.estimate import estimate_calibration
        from gacq_deploy.calibration.workspace import check_same_recipe
    if not fresh:
        check_same_recipe(recipe, directory)
    estimate = estimate_calibration(recipe)
    output.emit({"recipe": recipe.document(), "estimate": asdict(estimate)}, *_plan_tables(estimate))


def _plan_tables(estimate: CalibrationEstimate) -> tuple[Table | str, ...]:
    rows = [
        ("model", f"{estimate.family}, {estimate.parameters / 1e6:.2f} M parameters"),
        ("layers", f"{estimate.quantized_modules} quantized, {estimate.float_modules} float"),
        ("quantized tensors", len(estimate.sites)),
        ("blocks", f"{len(estimate.blocks)}, learned in order"),
        ("samples", f"{estimate.samples} to learn from, {estimate.validation_samples} held out"),
        ("time", f"about {duration(estimate.seconds)} on this machine"),
        ("memory", f"about {size(estimate.memory_mb * 2**20)}"),
        ("disk", f"about {size(estimate.disk_mb * 2**20)}"),
    ]
    sites = [
        (s["site"], s["bits"], s["range"], "" if s["tie"] == s["site"] else s["tie"]) for s in estimate.sites
    ]
    return (
        Table("quantized tensors", ["tensor", "bits", "range", "shares its scale in"], sites),
        Table("plan (nothing was written)", ["what", "estimate"], rows),
    )
