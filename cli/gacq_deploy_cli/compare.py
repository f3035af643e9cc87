"""`compare`: which of these runs is better, and may they be compared at all?"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gacq_deploy_cli.console import NextStep, Output
from gacq_deploy_cli.options import GivenPath, OutputPath, common, with_output
from gacq_deploy_cli.table import Table
from gacq_deploy_cli.units import size

if TYPE_CHECKING:
    from gacq_deploy.compare import RunComparison
    from gacq_deploy.compare.rows import RowValue

_BEST = " *"
"""Behind the best figure of a row; a sign, for not every terminal has colours."""


@click.command(short_help="Quality, size and speed of several runs side by side.")
@click.argument("directories", type=GivenPath(), nargs=-1, required=True, metavar="RUN RUN ...")
@click.option("-o", "--output", "file", type=OutputPath(".html"), help="Write it as one HTML page, too.")
@common
@with_output
def compare(output: Output, directories: tuple[Path, ...], file: Path | None) -> None:
    """Put what the records of two or more runs say side by side: verdict, quality, size, speed, learning.

    Says what a run lacks and which command makes it, what is stale, and what makes runs not comparable: such
    figures are shown, not ranked. Runs nothing.
    """
    from gacq_deploy.compare import compare_runs, write_compare_page

    with output.progress() as report:
        compared = compare_runs(directories, report=report)
    document, written = compared.document(), []
    if file is not None:
        count = write_compare_page(compared, file)
        document["page"] = str(file)
        written = [f"written: {file} ({size(count)})"]
    output.emit(document, *_tables(compared), *written)


def _tables(compared: RunComparison) -> Iterator[Table | NextStep | str]:
    columns = ["what", *compared.names]
    yield Table("runs", columns, [(fact, *words) for fact, words in compared.facts])
    for section, rows in groupby(compared.rows, lambda row: row.key.section):
        shown = [(row.key.name, *_cells(row.values, row.best)) for row in rows]
        yield Table(section, columns, shown)
    yield "* best of its row, with every figure that its quartiles reach"
    if gates := list(_gates(compared)):
        yield Table("gates that do not hold", ["run", "judged", "metric", "value", "bound"], gates)
    for ground in compared.grounds:
        ranked = f"not ranked: {', '.join(sorted(ground.topics))}. " if ground.topics else "note: "
        yield f"{ranked}{ground.sentence}"
    for name, record in zip(compared.names, compared.records, strict=True):
        for lack in record.lacks:
            what = "" if lack.status == "absent" else f"{lack.part} {lack.status}: "
            yield f"{name}: {what}{lack.reason}"
    yield _summary(compared)
    # several parts may lack for one command
    yield from dict.fromkeys(NextStep(lack.words) for record in compared.records for lack in record.lacks)


def _summary(compared: RunComparison) -> str:
    """Return how often each run is best, in one sentence."""
    ranked = [row.best for row in compared.rows if row.best]
    if not ranked:
        return "No figure of these runs can be ranked."
    counts = [(name, sum(place in best for best in ranked)) for place, name in enumerate(compared.names)]
    said = ", ".join(f"{name} is best in {count}" for name, count in counts)
    return f"Of {len(ranked)} ranked figures {said}."


def _cells(values: tuple[RowValue | None, ...], best: tuple[int, ...]) -> Iterator[str]:
    for place, value in enumerate(values):
        if value is None:
            yield "-"
        elif not value.is_current:
            yield f"{value.text} (stale)"
        else:
            yield f"{value.text}{_BEST if place in best else ''}"


def _gates(compared: RunComparison) -> Iterator[tuple[str, ...]]:
    records = dict(zip(compared.names, compared.records, strict=True))
    for name, gate in compared.failed_gates:
        value = "not evaluated" if gate.value is None else f"{gate.value:.6g}"
        bound = f"{'>=' if gate.at_least else '<='} {gate.bound:g}"
        run = name if records[name].is_current("parity") else f"{name} (stale)"
        yield (run, gate.candidate, gate.metric, value, bound)
