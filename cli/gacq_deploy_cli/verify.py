"""`verify`: is the whole chain of a run directory intact?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gacq_deploy_cli import exit_codes
from gacq_deploy_cli.console import NextStep, Output
from gacq_deploy_cli.following import next_for
from gacq_deploy_cli.options import common, run_directory_argument, trusted_option, with_output
from gacq_deploy_cli.table import Table

if TYPE_CHECKING:
    from gacq_deploy.inspection.verify import VerifyReport


@click.command(short_help="Check every digest of a run directory.")
@run_directory_argument
@trusted_option
@common
@with_output
def verify(output: Output, directory: Path, trusted_keys: Path | None) -> int:
    """Check every digest from recipe to report; exit 5 when something is stale, corrupt or altered.

    What was not made yet is absent, not wrong; a file that no record names is listed as unchecked. A warning is for
    what was not altered, and still is not well: a parity that failed, or a page of an earlier state. With
    --trusted-keys a run that none of them signed is wrong, too.
    """
    from gacq_deploy.inspection.verify import verify_run
    from gacq_deploy.run_directory import RunDirectory

    report = verify_run(RunDirectory(directory), trusted_keys)
    rows = [(link.name, link.status, f"{link.detail} {link.hint}".rstrip()) for link in report.links]
    table = Table(f"verify {directory}", ["link", "status", "found, and what to do"], rows)
    output.emit(report.document(), table, *_ending(report, directory))
    return exit_codes.DONE if report else exit_codes.STALE


def _ending(report: VerifyReport, directory: Path) -> Iterator[NextStep | str]:
    """Yield what all links amount to, and what comes next."""
    made = [link for link in report.links if link.status not in ("absent", "unchecked")]
    broken = [link for link in made if link.status == "fail"]
    if broken:
        names = ", ".join(link.name for link in broken)
        yield f"NOT INTACT: {len(broken)} of {len(made)} parts are stale, corrupt or altered: {names}."
        yield f"First: {broken[0].hint}"
        return
    yield f"INTACT: {len(made)} of {len(made)} parts are what was written."
    yield from (f"But {link.name} {link.detail}" for link in made if link.status == "warning")
    yield from next_for(directory)
