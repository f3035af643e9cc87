"""`inspect`: what calibration learned, and which rule of the recipe asked for it."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gacq_deploy_cli.console import Output, Table
from gacq_deploy_cli.options import common, run_directory_argument, with_output

if TYPE_CHECKING:
    from gacq_deploy.inspection import Inspection


@click.command(short_help="Show scales, winning rules and losses of an artifact.")
@run_directory_argument
@click.option("--sites", "pattern", default="*", help="Show only sites that match this wildcard.")
@common
@with_output
def inspect(output: Output, directory: Path, pattern: str) -> None:
    """Show an artifact: per tensor the winning rule, bits and scales; per block what learning did.

    DIR is a run directory or an artifact folder. Files are verified before they are read.
    """
    from gacq_deploy.inspection import inspect_artifact

    result = inspect_artifact(directory)
    head = (
        f"artifact {result.digest[:12]} of model {result.model['source']} "
        f"({result.model['family']}, weights {result.model['weights_sha256'][:12]})"
    )
    output.emit(result.document(), head, _sites(result, pattern), _blocks(result))


def _sites(result: Inspection, pattern: str) -> Table:
    rows = [
        (
            s.site,
            s.bits,
            s.granularity,
            f"{s.rule} {s.rule_text}" if s.rule else "none",
            s.range,
            _span(s.scale_min, s.scale_max),
            "" if s.saturated is None else f"{s.saturated:.2%}",
            s.tie,
        )
        for s in result.sites
        if fnmatchcase(s.site, pattern)
    ]
    columns = [
        "site",
        "bits",
        "per",
        "winning rule",
        "range",
        "scale",
        "codes at the ends",
        "shares its scale in",
    ]
    return Table(f"{len(rows)} of {len(result.sites)} quantized tensors", columns, rows)


def _blocks(result: Inspection) -> Table:
    rows = [
        (b.name, b.sites, f"{b.loss_start:.4g}", f"{b.loss_end:.4g}", f"{b.effective_samples:.1f}")
        for b in result.blocks
    ]
    return Table(
        "reconstruction", ["block", "tensors", "loss before", "loss after", "effective samples"], rows
    )


def _span(low: float, high: float) -> str:
    return f"{low:.5g}" if low == high else f"{low:.3g} .. {high:.3g}"
