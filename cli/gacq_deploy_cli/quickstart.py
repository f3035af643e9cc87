"""`quickstart`: the whole chain, once."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gacq_deploy_cli import exit_codes
from gacq_deploy_cli.console import Output
from gacq_deploy_cli.options import choose_preset, common, needs_extra, set_option, with_output
from gacq_deploy_cli.table import Table
from gacq_deploy_cli.units import size

if TYPE_CHECKING:
    from gacq_deploy.parity.report import JudgedPolicy
    from gacq_deploy.workflow.quickstart import ChainResult, Row


@click.command(short_help="The whole chain on the shipped model.")
@click.option(
    "-r", "--recipe", default="fashion-w8a8", show_default=True, help="Built-in recipe or YAML file."
)
@click.option(
    "-o",
    "--output-dir",
    type=click.Path(path_type=Path),
    default=Path("runs/quickstart"),
    show_default=True,
    help="Run directory.",
)
@choose_preset("quick")
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
    with needs_extra("cpu,calibrate", "quickstart"):
        from gacq_deploy.workflow.quickstart import run_chain
    with output.progress() as report:
        result = run_chain(resolved, run, fresh=fresh, report=report)
        page = ensure_report(run, report=report)
    output.emit(_document(result, run.parity_json, page), *_tables(result, run.parity_json, page))
    return exit_codes.DONE if result.parity else exit_codes.GATE


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


def _tables(result: ChainResult, parity_json: Path, page: Path) -> tuple[Table | str, ...]:
    batches = result.bench.batches
    columns = ["engine", "graph", "size float", "INT8", *(f"speed x, batch {b}" for b in batches)]
    columns += ["per-step SQNR dB (worst bucket)", "image PSNR dB", "image SSIM", "parity"]
    # a graph that only serves as the reference of other engines has no speed of its own
    shown = [row for row in result.rows if row.speedup] or result.rows
    cells = [_cells(row, batches) for row in shown]
    done = [f"already done: {', '.join(result.already_done)}"] if result.already_done else []
    verdict = "passed" if result.parity else "FAILED (gacq-deploy parity shows which gate)"
    return (
        Table("INT8 against float", columns, cells),
        "speed: CPU time of float.onnx in ONNX Runtime over that of the INT8 graph, one thread",
        *_steps(result.parity.step_policy),
        *done,
        f"images FP | INT8 | difference: {result.comparison}",
        f"evidence: {parity_json}",
        f"report: {page}",
        f"verdict: {verdict}",
    )


def _steps(policy: JudgedPolicy) -> tuple[str, ...]:
    if not policy.float_timesteps:
        return ()
    chosen, steps = len(policy.float_timesteps), len(policy.timesteps)
    return (
        f"with {chosen} of {steps} sampler steps in float: speed and images are those of whole trajectories",
    )


def _cells(row: Row, batches: tuple[int, ...]) -> tuple[str, ...]:
    speeds = [_number(row.speedup.get(batch), 2) for batch in batches]
    return (
        row.engine,
        row.file,
        size(row.float_bytes),
        size(row.int8_bytes),
        *speeds,
        _number(row.eps_sqnr_db, 1),
        _number(row.image_psnr_db, 1),
        _number(row.image_ssim, 3),
        "ok" if row.passed else "fail",
    )


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
