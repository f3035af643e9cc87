"""`calibrate`: learn rounding and scales for a model under a recipe."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gacq_deploy_cli.console import NextStep, Output
from gacq_deploy_cli.options import (
    GivenPath,
    common,
    needs_extra,
    preset_option,
    python_option,
    recipe_option,
    set_option,
    with_output,
)
from gacq_deploy_cli.table import Table
from gacq_deploy_cli.units import about, duration, size

if TYPE_CHECKING:
    from gacq_deploy.artifact.artifact import CalibrationArtifact
    from gacq_deploy.calibration.cost.estimate import CalibrationEstimate
    from gacq_deploy.models.source import Source
    from gacq_deploy.progress import Reporter
    from gacq_deploy.recipe.sections import ModelSection, Recipe


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
@click.option("-o", "--output-dir", type=GivenPath(), required=True, help="Run directory.")
@click.option(
    "--prompts",
    type=GivenPath(dir_okay=False),
    help="Prompts of a text-to-image model's trajectories: text (one a line), .json or .jsonl; default: built-in ones.",
)
@preset_option
@set_option
@click.option("--seed", type=click.IntRange(min=0), help="Seed of samples and learning.")
@click.option(
    "--device",
    help="Where to compute: auto, cpu, cuda or cuda:N; default: the recipe's, a GPU if there is one.",
)
@click.option("--fresh", is_flag=True, help="Forget what is in the directory and start over.")
@click.option("--dry-run", is_flag=True, help="Print the plan with time, memory and disk; write nothing.")
@python_option
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
    device: str | None,
    fresh: bool,
    dry_run: bool,
    allow_python: bool,
) -> None:
    """Collect samples; learn sample weights, rounding and scales block by block; polish the whole model.

    The weights are GAC-style (arXiv 2602.01289), reconstructed from public descriptions.

    Writes recipe.yaml, samples.safetensors, work/ and artifact/ into the run directory. Interrupted or
    killed, the same command resumes; finished, it does nothing.
    """
    from gacq_deploy.calibration.same_recipe import check_same_recipe
    from gacq_deploy.inspection.commands import consent_for
    from gacq_deploy.processes.group import joined_group
    from gacq_deploy.recipe.load import load_recipe
    from gacq_deploy.run_directory import RunDirectory

    directory = RunDirectory(output_dir)
    options = recipe_sections(model=model, seed=seed, prompts=prompts, loras=loras, device=device)
    found = None
    if recipe is None:
        recipe, found = _suiting(output, options.get("model", {}))
    resolved = load_recipe(recipe, overrides, preset=preset, **options).allowing_python(allow_python)
    # what needs no PyTorch is refused before it is imported
    _check_folder(resolved.model)
    directory.require_room()
    if not fresh:
        check_same_recipe(resolved, directory)
    if dry_run:
        _show_plan(output, resolved, found)
        return
    with needs_extra("calibrate", "calibrate"):
        from gacq_deploy.calibration.stage import calibrate as run_calibration
        from gacq_deploy.models.trajectories.worker import help_calibrate
    began = time.monotonic()
    with joined_group() as group, output.progress() as report:
        if not group.is_main:
            help_calibrate(resolved, group)
            return
        foresee = partial(announce, report, preset)
        artifact = run_calibration(
            resolved, directory, source=found, fresh=fresh, foresee=foresee, report=report, group=group
        )
    details = (_blocks(artifact),) if output.verbosity > 0 else ()
    output.emit(
        _document(output_dir, resolved, artifact),
        *details,
        *gain_lines(artifact),
        *(f"note: {note}" for note in _notes(artifact)),
        f"{summary_text(artifact)} {duration(time.monotonic() - began)}.",
        NextStep(("export", output_dir, *consent_for(directory))),
    )


def _suiting(output: Output, model: Mapping[str, Any]) -> tuple[str, Source | None]:
    """Return the built-in recipe that suits the model, and the model if it had to be made for that; say why."""
    from gacq_deploy.errors import UsageError
    from gacq_deploy.models.folders import read_configuration
    from gacq_deploy.models.recipe_choice import choose_recipe
    from gacq_deploy.recipe.load import builtin_recipes
    from gacq_deploy.recipe.sections import PYTHON_PREFIX, ModelSection

    if "source" not in model:
        raise UsageError(
            "Neither a model nor a recipe is named.",
            "Pass --model FOLDER, and the recipe that suits it is taken; or -r NAME, one of: "
            f"{', '.join(builtin_recipes())}.",
        )
    section, found = ModelSection(**model), None
    if section.source.startswith(PYTHON_PREFIX):
        with needs_extra("calibrate", "calibrate"):
            from gacq_deploy.models.source import find_source
        # the user's function runs once: what it made is calibrated
        found = find_source(section)
        kind, config = found.family.name, found.config
    else:
        _, _, read = read_configuration(section, weights=False)
        kind, config = str(read.get("_class_name")), read
    choice = choose_recipe(kind, config)
    output.note(f"recipe: {choice.recipe}, for {choice.why} (-r NAME takes another)")
    return choice.recipe, found


def _check_folder(section: ModelSection) -> None:
    """Refuse a folder that is not there, holds no denoiser or cannot be opened here; of the hub it is found later."""
    from gacq_deploy.models.folders import check_text_library, is_on_hub, read_configuration
    from gacq_deploy.recipe.sections import PYTHON_PREFIX

    if not section.source.startswith(PYTHON_PREFIX) and not is_on_hub(section):
        root, _, _ = read_configuration(section, weights=False)
        check_text_library(root)


def announce(report: Reporter, preset: str | None, estimate: CalibrationEstimate) -> None:
    """Say what a calibration will cost, and where memory may not suffice."""
    from gacq_deploy.storage.room import memory_shortage

    what = f"preset {preset}" if preset else "this calibration"
    report.note(
        f"{what}: {about(estimate.seconds)}, {size(estimate.memory_mb * 2**20)} of memory, "
        f"{size(estimate.disk_mb * 2**20)} of disk; {len(estimate.sites)} tensors to quantize, "
        f"{estimate.samples} samples"
    )
    needed = (estimate.memory_mb - estimate.mapped_mb) * 2**20
    lower = "lower calibration.memory_mb or the batch of calibration.polish, or end other programs"
    if shortage := memory_shortage(needed, lower):
        report.note(f"warning: {shortage}")


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
    device: str | None = None,
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
    if device is not None:
        sections["calibration"]["device"] = device
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


def gain_lines(artifact: CalibrationArtifact) -> Iterator[str]:
    """Yield what every stage took and gave, in the order in which they ran."""
    before = None
    for name, gain in _stages(artifact):
        level = f"{gain['sqnr_db']:.1f} dB"
        text = f"{name}: {level}" if before is None else f"{name}: {before:.1f} to {level}"
        lost = "" if gain["kept"] else "; it lost, and the state before it was restored"
        yield f"{text} in {duration(gain['seconds'])}{lost}"
        before = gain["sqnr_db"] if gain["kept"] else before


def _stages(artifact: CalibrationArtifact) -> list[tuple[str, Mapping[str, Any]]]:
    from gacq_deploy.artifact.diagnostics import ERROR_STAGES

    stages = artifact.build.get("stages", {})
    return [(name, stages[name]) for name in ERROR_STAGES if name in stages]


def summary_text(artifact: CalibrationArtifact) -> str:
    """Return what was made and how far its output is from the float model's, in one sentence."""
    plan, digest = artifact.plan, artifact.manifest_digest[:12]
    what = f"{plan.kind}: {len(plan.modules)} layers quantized (artifact {digest})."
    stages = _stages(artifact)
    if not stages:
        return what
    kept = [gain["sqnr_db"] for _, gain in stages if gain["kept"]]
    level = f"{kept[0]:.1f} dB with nearest rounding"
    if len(kept) > 1:
        level += f", {kept[-1]:.1f} dB learned"
    elif len(stages) > 1:
        level += "; learning gained nothing, a higher --preset may"
    return f"{what} Output SQNR in the worst timestep bucket: {level}."


def _blocks(artifact: CalibrationArtifact) -> Table:
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


def _seconds(estimate: CalibrationEstimate) -> dict[str, float]:
    """Return the seconds of each stage by name: one that comes again, such as a measurement, stands once."""
    seconds: dict[str, float] = {}
    for stage in estimate.stages:
        seconds[stage.name] = seconds.get(stage.name, 0.0) + (stage.seconds or 0.0)
    return seconds


def _show_plan(output: Output, recipe: Recipe, found: Source | None) -> None:
    with needs_extra("calibrate", "calibrate --dry-run"):
        from gacq_deploy.calibration.cost.estimate import estimate_calibration
    estimate = estimate_calibration(recipe, source=found)
    seconds = _seconds(estimate)
    costs = asdict(estimate) | {"stages": seconds, "seconds": estimate.seconds}
    tensors = _each_tensor(estimate) if output.verbosity > 0 else _kinds_of_tensors(estimate)
    document = {"recipe": recipe.document(), "estimate": costs}
    output.emit(document, tensors, *plan_tables(recipe, estimate))


def plan_tables(recipe: Recipe, estimate: CalibrationEstimate) -> tuple[Table | str, ...]:
    """Return the plan with its costs, and what it amounts to in one sentence."""
    rows = [
        ("model", f"{estimate.family}, {estimate.parameters / 1e6:.2f} M parameters"),
        *(("LoRA, fused first", f"{lora.source}, scale {lora.scale:g}") for lora in recipe.model.loras),
        ("layers", f"{estimate.quantized_modules} quantized, {estimate.float_modules} float"),
        *_unused(estimate.unused_modules),
        ("quantized tensors", len(estimate.sites)),
        ("blocks", f"{len(estimate.blocks)}, {_learning(recipe)}"),
        ("samples", f"{estimate.samples} to learn from, {estimate.validation_samples} held out"),
        ("sample weights", estimate.weights),
        ("polish", estimate.polish),
        ("time", f"{about(estimate.seconds)} on this machine"),
        *((f"- {name}", about(seconds)) for name, seconds in _seconds(estimate).items()),
        (
            "memory",
            f"about {size(estimate.memory_mb * 2**20)}, of it {size(estimate.mapped_mb * 2**20)} of weights mapped "
            "from their files",
        ),
        *((("GPU memory", f"about {size(estimate.gpu_mb * 2**20)}"),) if estimate.gpu_mb is not None else ()),
        ("disk", f"about {size(estimate.disk_mb * 2**20)}"),
        ("export", f"about {size(estimate.export_mb * 2**20)} of memory, weights in files left out"),
    ]
    layers = f"{estimate.quantized_modules} of {estimate.quantized_modules + estimate.float_modules} layers"
    return (
        Table("plan (nothing was written)", ["what", "estimate"], rows),
        f"{layers} to quantize, {about(estimate.seconds)}. Leave --dry-run out to do it.",
    )


def _each_tensor(estimate: CalibrationEstimate) -> Table:
    sites = [_site_row(site) for site in estimate.sites]
    return Table("quantized tensors", ["tensor", "bits", "range", "shares its scale in"], sites)


def _kinds_of_tensors(estimate: CalibrationEstimate) -> Table:
    """Return how many tensors are quantized alike: one row for each would be hundreds."""
    kinds = Counter(
        (str(site["site"]).rpartition(":")[2], _bits(site), site["range"]) for site in estimate.sites
    )
    rows = [(count, *kind) for kind, count in kinds.items()]
    return Table("quantized tensors (-v names each)", ["tensors", "role", "bits", "range"], rows)


def _learning(recipe: Recipe) -> str:
    is_learned = recipe.calibration.reconstruction.iterations > 0
    return "learned in order" if is_learned else "nearest rounding, nothing is learned"


def _site_row(site: Mapping[str, object]) -> tuple[object, ...]:
    shared = "" if site["tie"] == site["site"] else site["tie"]
    return (site["site"], _bits(site), site["range"], shared)


def _unused(names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    said = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
    return (("layers whose result nothing uses", f"{len(names)}, float: {said}"),) if names else ()


def _bits(site: Mapping[str, object]) -> object:
    return f"{site['bits']} in blocks of {site['block']}" if "block" in site else site["bits"]
