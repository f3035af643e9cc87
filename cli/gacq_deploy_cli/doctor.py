"""`doctor`: can this machine do what the commands need?"""

from __future__ import annotations

from pathlib import Path

import click

from gacq_deploy_cli import exit_codes
from gacq_deploy_cli.console import Output
from gacq_deploy_cli.options import common, with_output
from gacq_deploy_cli.table import Table


@click.command(short_help="Check this machine.")
@click.option(
    "-o",
    "--output-dir",
    type=click.Path(path_type=Path),
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
    rows = [(check.name, check.status, check.value, check.hint) for check in report.checks]
    output.emit(report.document(), Table("doctor", ["check", "status", "found", "what to do"], rows))
    return exit_codes.DONE if report else exit_codes.ENVIRONMENT
