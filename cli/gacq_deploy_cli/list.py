"""`list`: which runs lie here, how far is each, and what comes next?"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gacq_deploy_cli.console import NextStep, Output
from gacq_deploy_cli.options import GivenPath, common, with_output
from gacq_deploy_cli.table import Table
from gacq_deploy_cli.units import size

if TYPE_CHECKING:
    from gacq_deploy.inspection.state import RunState


@click.command(name="list", short_help="The runs in a folder, and the next command for each.")
@click.argument("folder", type=GivenPath(), default=Path("runs"), metavar="[FOLDER]")
@common
@with_output
def list_(output: Output, folder: Path) -> None:
    """Say of every run in FOLDER (default: runs) how far it is, and which command brings it one step further.

    Looks three folders deep. Records are read and held against the graphs beside them; `verify` checks every
    digest.
    """
    from gacq_deploy.inspection.state import list_runs

    with output.progress() as report:
        runs = list_runs(folder, report)
    document = {"folder": str(folder), "runs": [run.document() for run in runs]}
    if not runs:
        output.emit(
            document,
            f"No run lies in {folder}.",
            NextStep(("quickstart",), "or calibrate --model ./my-model -o runs/mine"),
        )
        return
    output.emit(document, _table(folder, runs), *_problems(runs), *_next(runs))


def _table(folder: Path, runs: tuple[RunState, ...]) -> Table:
    columns = ["run", "model", "recipe", "how far", "size", "written", "held by process"]
    return Table(f"runs in {folder}", columns, [_row(run) for run in runs])


def _row(run: RunState) -> tuple[str, ...]:
    preset = f", {run.preset}" if run.preset else ""
    written = datetime.fromisoformat(run.written).astimezone()
    return (
        run.directory,
        Path(run.model).name,
        f"{run.recipe}{preset}",
        ", ".join(run.reached),
        size(run.bytes),
        f"{written:%Y-%m-%d %H:%M}",
        run.holder or "",
    )


def _problems(runs: tuple[RunState, ...]) -> list[str]:
    return [f"{run.directory}: {s.name} is {s.status}: {s.detail}" for run in runs for s in run.problems]


def _next(runs: tuple[RunState, ...]) -> list[NextStep]:
    return [NextStep(words) for run in runs if (words := run.next_words)]
