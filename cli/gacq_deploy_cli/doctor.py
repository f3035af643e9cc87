"""`doctor`: can this machine do what the commands need?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gacq_deploy_cli import exit_codes
from gacq_deploy_cli.console import NextStep, Output
from gacq_deploy_cli.options import GivenPath, common, with_output
from gacq_deploy_cli.table import Table

if TYPE_CHECKING:
    from gacq_deploy.doctor import Check, DoctorReport


@click.command(short_help="Check this machine.")
@click.option(
    "-o",
    "--output-dir",
    type=GivenPath(),
    default=Path(),
    help="Where runs would be written (disk).",
)
@common
@with_output
def doctor(output: Output, output_dir: Path) -> int:
    """Check Python, packages, engines, CPU, disk and memory; exit 4 when something needed is missing.

    Engines are really opened and run on a one-node graph.
    """
    from gacq_deploy.doctor import examine

    report = examine(output_dir)
    rows = [(check.name, check.status, _found(check)) for check in report.checks]
    table = Table("doctor", ["check", "status", "found, and what to do"], rows)
    output.emit(report.document(), table, *_ending(report))
    return exit_codes.DONE if report else exit_codes.ENVIRONMENT


def _found(check: Check) -> str:
    return f"{check.value.removesuffix('.')}. {check.hint}" if check.hint else check.value


def _ending(report: DoctorReport) -> Iterator[NextStep | str]:
    failed = [check for check in report.checks if check.status == "fail"]
    warned = [check.name for check in report.checks if check.status == "warning"]
    if failed:
        yield f"NOT ABLE: {', '.join(check.name for check in failed)} failed."
        yield f"First: {failed[0].hint}"
        return
    yield "This machine can do the whole chain." + (f" Worth a look: {', '.join(warned)}." if warned else "")
    yield NextStep(("quickstart",), "the whole chain on the shipped model")
