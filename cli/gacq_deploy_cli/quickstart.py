"""`quickstart`: the whole chain, once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gacq_deploy_cli import exit_codes
from gacq_deploy_cli.calibrate import announce
from gacq_deploy_cli.console import NextStep, Output
from gacq_deploy_cli.options import (
    GivenPath,
    choose_preset,
    common,
    complete_recipe,
    needs_extra,
    set_option,
    with_output,
)
from gacq_deploy_cli.parity import verdict_lines
from gacq_deploy_cli.table import Table
from gacq_deploy_cli.units import size

if TYPE_CHECKING:
    from gacq_deploy.parity.records import JudgedPolicy
    from gacq_deploy.recipe.sections import Recipe
    from gacq_deploy.run_directory import RunDirectory
    from gacq_deploy.workflow.quickstart import ChainResult, Row


_DEMO = "fashion-w8a8"


@click.command(short_help="The whole chain on the shipped model.")
@click.option(
    "-r",
    "--recipe",
    default=_DEMO,
    show_default=True,
    shell_complete=complete_recipe,
    help="Built-in recipe or YAML file.",
)
@click.option(
    "-o",
    "--output-dir",
    type=GivenPath(),
    default=Path("runs/quickstart"),
    show_default=True,
    help="Run directory.",
)
@choose_preset("nearest")
@set_option
@click.option("--fresh", is_flag=True, help="Forget what is in the directory and start over.")
@common
@with_output
def quickstart(
    output: Output, recipe: str, output_dir: Path, preset: str, overrides: tuple[str, ...], fresh: bool
) -> int:
    """Calibrate, export, prove, measure and draw the shipped model; exit 3 when a gate fails.

    At the end stands report.html in the run directory: everything about the run on one page. Interrupted, the
    same command resumes; finished, it says so and shows the result again.
    """
    from gacq_deploy.recipe.load import load_recipe
    from gacq_deploy.report import ensure_report
    from gacq_deploy.run_directory import RunDirectory

    resolved = load_recipe(recipe, overrides, preset=preset)
    run = RunDirectory(output_dir)
    run.require_room()
    with needs_extra("cpu,calibrate", "quickstart"):
        from gacq_deploy.workflow.quickstart import run_chain
    with output.progress() as report:
        result = run_chain(
            resolved, run, fresh=fresh, foresee=partial(announce, report, preset), report=report
        )
        page = ensure_report(run, report=report)
    output.emit(
        _document(result, run.parity_json, page),
        *_tables(result, run, page),
        *deeper_steps(resolved, recipe, output_dir),
        NextStep(("calibrate", "--model", "./my-model", "-o", "runs/mine"), "your own model"),
    )
    return exit_codes.DONE if result.parity else exit_codes.GATE


def deeper_steps(resolved: Recipe, recipe: str, output_dir: Path) -> Iterator[NextStep]:
    """Yield the command that learns, where nothing was learned."""
    from gacq_deploy.recipe.presets import stronger_preset

    preset = stronger_preset(resolved)
    if preset is not None and resolved.calibration.reconstruction.iterations == 0:
        where = output_dir.with_name(f"{output_dir.name}-{preset}")
        chosen = () if recipe == _DEMO else ("-r", recipe)
        yield NextStep(
            ("quickstart", *chosen, "--preset", preset, "-o", where), "learn rounding and scales, too"
        )


def _document(result: ChainResult, parity_json: Path, page: Path) -> dict[str, Any]:
    return {
        "passed": result.parity.passed,
        "artifact": result.artifact_sha256,
        "rows": [asdict(row) for row in result.rows],
        "step_policy": result.parity.subject.get("step_policy"),
        "already_done": result.already_done,
        "comparison": str(result.comparison),
        "parity": str(parity_json),
        "report": str(page),
    }


def _tables(result: ChainResult, run: RunDirectory, page: Path) -> Iterator[Table | NextStep | str]:
    batches = result.bench.batches
    columns = ["engine", "graph", "size", "speed", "worst timestep bucket", "images", "parity"]
    # a graph that only serves as the reference of other engines has no speed of its own
    shown = [row for row in result.rows if row.speedup] or result.rows
    yield Table("INT8 against float", columns, [_cells(row, batches) for row in shown])
    yield from _steps(result.parity.step_policy)
    if result.already_done:
        yield f"already done: {', '.join(result.already_done)}"
    yield f"pictures, FP, INT8 and difference: {result.comparison}"
    yield f"report, open it in a browser: {page}"
    yield from verdict_lines(result.parity, run)


def _steps(policy: JudgedPolicy) -> tuple[str, ...]:
    if not policy.float_timesteps:
        return ()
    chosen, steps = len(policy.float_timesteps), len(policy.timesteps)
    return (
        f"with {chosen} of {steps} sampler steps in float: speed and images are those of whole trajectories",
    )


def _cells(row: Row, batches: tuple[int, ...]) -> tuple[str, ...]:
    speeds = [f"{row.speedup[batch]:.2f}x at batch {batch}" for batch in batches if batch in row.speedup]
    images = [_number(row.image_psnr_db, "{:.1f} dB PSNR"), _number(row.image_ssim, "{:.3f} SSIM")]
    return (
        row.engine,
        row.file,
        f"{size(row.float_bytes)} to {size(row.int8_bytes)}, {row.float_bytes / row.int8_bytes:.1f}x smaller",
        ", ".join(speeds),
        _number(row.eps_sqnr_db, "{:.1f} dB"),
        ", ".join(filter(None, images)),
        "ok" if row.passed else "fail",
    )


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
