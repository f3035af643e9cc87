"""`parity`: does the exported model compute what was calibrated, and is that close to the original?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gacq_deploy_cli import exit_codes
from gacq_deploy_cli.console import NextStep, Output, Verbatim
from gacq_deploy_cli.options import (
    GivenPath,
    OutputPath,
    common,
    complete_engine,
    host_code_option,
    run_directory_argument,
    with_output,
)
from gacq_deploy_cli.table import Table

if TYPE_CHECKING:
    from gacq_deploy.parity import ParityReport
    from gacq_deploy.parity.report import Comparison
    from gacq_deploy.run_directory import RunDirectory


@click.command(short_help="Prove that the graphs are the calibrated model (exit 3: they are not).")
@run_directory_argument
@click.option(
    "--engine",
    "engines",
    multiple=True,
    shell_complete=complete_engine,
    help="Engine to judge, repeatable; default: ort-cpu, and openvino if installed.",
)
@click.option(
    "--rejudge",
    "thresholds",
    type=GivenPath(),
    metavar="FILE",
    help="Judge the last run's numbers under the thresholds of this YAML: keys of a parity section, or a recipe.",
)
@click.option(
    "--threads", type=click.IntRange(min=0), default=0, help="CPU threads; 0 lets the engine choose."
)
@host_code_option
@click.option(
    "--save-polygraphy",
    "save_polygraphy",
    type=OutputPath(),
    metavar="FOLDER",
    help="Save the probe's inputs and each engine's outputs for Polygraphy and trtexec, and print their commands.",
)
@common
@with_output
def parity(
    output: Output,
    directory: Path,
    engines: tuple[str, ...],
    thresholds: Path | None,
    threads: int,
    allow_host_code: bool,
    save_polygraphy: Path | None,
) -> int:
    """Prove that the exported graphs are the calibrated model: exit 0 ship it, 3 do not.

    Four kinds of evidence: exact numbers in every file, agreement block by block, equal distance from the
    float model, and that distance against the recipe's budget. Writes parity.json; --rejudge writes and
    runs nothing.
    """
    from gacq_deploy.errors import UsageError
    from gacq_deploy.parity import check_parity, rejudge
    from gacq_deploy.run_directory import RunDirectory

    run = RunDirectory(directory)
    if thresholds is not None:
        if save_polygraphy is not None:
            raise UsageError(
                "--rejudge runs nothing, so --save-polygraphy has nothing to save.", "Leave one out."
            )
        result = rejudge(run, _read_thresholds(thresholds))
    else:
        with output.progress() as report:
            result = check_parity(
                run,
                engines=engines or None,
                threads=threads,
                allow_host_code=allow_host_code,
                save_polygraphy=save_polygraphy,
                report=report,
            )
    document = result.model_dump(mode="json", by_alias=True)
    lines: tuple[str, ...] = ()
    if save_polygraphy is not None:
        more, lines = _saved(save_polygraphy)
        document |= more
    output.emit(document, *parity_tables(result, run, detailed=output.verbosity > 0), *lines)
    return exit_codes.DONE if result else exit_codes.GATE


def _saved(folder: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return what is said of the folder for NVIDIA's tools, with --json and without."""
    from dataclasses import asdict

    from gacq_deploy.parity import saved_commands

    commands = saved_commands(folder)
    document = {"folder": str(folder), "commands": [asdict(command) for command in commands]}
    lines = (Verbatim(f"\n# {command.about}\n{command.line}") for command in commands)
    return {"polygraphy": document}, (f"saved for Polygraphy: {folder}", *lines)


def parity_tables(
    result: ParityReport, run: RunDirectory, *, detailed: bool
) -> Iterator[Table | NextStep | str]:
    """Yield one row a comparison (or a gate), what failed and what helps, and the verdict with the next command."""
    if detailed:
        yield from _gates(result)
    else:
        yield Table("parity", ["verdict", "evidence", "judged", "gates"], _comparison_rows(result))
    yield from result.remarks
    yield from verdict_lines(result, run)
    if result:
        yield NextStep(("bench", run.root))


def verdict_lines(result: ParityReport, run: RunDirectory) -> Iterator[NextStep | str]:
    """Yield the verdict in one sentence; where gates failed each in words, and what helps, in order."""
    from gacq_deploy.parity.remedies import advice, remedies, say_gate

    failed, count = result.failed_gates, sum(len(c.thresholds) for c in result.comparisons)
    if not failed:
        yield f"SHIP IT: {count} of {count} gates hold{_fidelity(result)}. ({run.parity_json})"
        return
    yield f"DO NOT SHIP: {len(failed)} of {count} gates failed. ({run.parity_json})"
    yield from dict.fromkeys(f"- {say_gate(gate)}" for gate in failed)
    yield from advice(failed)
    for number, remedy in enumerate(remedies(result, run, run.load_recipe()), 1):
        yield NextStep(remedy.command, remedy.why, lead=f"What may help ({number})")


def _fidelity(result: ParityReport) -> str:
    """Return the least PSNR of images and SQNR of steps of all candidates, beside what they need."""
    said = []
    for metric, name in (("image_psnr_db", "image PSNR"), ("eps_sqnr_db", "worst timestep bucket")):
        values = [metrics.get(metric) for metrics in result.fidelity.values()]
        known = [value for value in values if value is not None]
        if known:
            said.append(f"{name} {min(known):.1f} dB, needs {getattr(result.protocol.budget, metric):g}")
    return f" ({'; '.join(said)})" if said else ""


def _comparison_rows(result: ParityReport) -> Iterator[tuple[Any, ...]]:
    failed = Counter((gate.evidence, gate.reference, gate.candidate) for gate in result.failed_gates)
    for found in result.comparisons:
        count, bad = len(found.thresholds), failed[found.evidence, found.reference, found.candidate]
        yield ("FAIL" if bad else "ok", found.evidence, found.candidate, f"{count - bad} of {count} hold")


def _gates(result: ParityReport) -> Iterator[Table]:
    # names of graphs and engines stand above the rows: beside the numbers they would not fit into 80 columns
    for comparison in result.comparisons:
        title = f"{comparison.evidence}: {comparison.reference} -> {comparison.candidate}"
        yield Table(title, ["verdict", "metric", "value", "bound"], _rows(comparison))


def _rows(comparison: Comparison) -> Iterator[tuple[str, ...]]:
    from gacq_deploy.parity.report import GATES

    for name, bound in comparison.thresholds.items():
        gate, value = GATES[comparison.evidence][name], comparison.metrics.get(name)
        verdict = "ok" if gate.holds(value, bound) else "FAIL"
        measured = "not evaluated" if value is None else f"{value:.6g}"
        yield (verdict, name, measured, f"{'>=' if gate.at_least else '<='} {bound:g}")


def _read_thresholds(path: Path) -> dict[str, Any]:
    from gacq_deploy.errors import RecipeError
    from gacq_deploy.storage.documents import Malformed, read_bytes
    from gacq_deploy.storage.yaml_documents import decode_yaml

    hint = "Pass a YAML file such as {budget: {image_psnr_db: 28}}, or a recipe."
    try:
        document = decode_yaml(read_bytes(path, pipes=True)).value
    except (OSError, Malformed) as error:
        raise RecipeError(f"Thresholds {path} cannot be read: {error}.", hint) from error
    if isinstance(document, dict):
        is_recipe = str(document.get("schema", "")).startswith("gacq-deploy/recipe/")
        document = document.get("parity", {} if is_recipe else document)
    if not isinstance(document, dict):
        raise RecipeError(f"{path}: thresholds are a mapping, got {type(document).__name__}.", hint)
    return document
