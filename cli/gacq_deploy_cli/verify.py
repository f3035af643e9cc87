"""`verify`: is the whole chain of a run directory intact?"""

from __future__ import annotations

from pathlib import Path

import click

from gacq_deploy_cli import exit_codes
from gacq_deploy_cli.console import Output
from gacq_deploy_cli.options import common, run_directory_argument, with_output
from gacq_deploy_cli.table import Table


@click.command(short_help="Check every digest of a run directory.")
@run_directory_argument
@common
@with_output
def verify(output: Output, directory: Path) -> int:
    """Check every digest from recipe to report; exit 5 when something is stale, corrupt or altered.

    What was not made yet is absent, not wrong.
    """
    from gacq_deploy.inspection.verify import verify_run
    from gacq_deploy.run_directory import RunDirectory

    report = verify_run(RunDirectory(directory))
    rows = [(link.name, link.status, link.path, link.detail, link.hint) for link in report.links]
    output.emit(report.document(), Table("verify", ["link", "status", "file", "found", "what to do"], rows))
    return exit_codes.DONE if report else exit_codes.STALE
