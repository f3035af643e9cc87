"""`inspect`: what calibration learned, and which rule of the recipe asked for it."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gacq_deploy_cli.console import Output
from gacq_deploy_cli.following import next_for
from gacq_deploy_cli.options import common, run_directory_argument, with_output
from gacq_deploy_cli.table import Table

if TYPE_CHECKING:
    from gacq_deploy.artifact.records import BlockRecord, PolishRecord
    from gacq_deploy.inspection.artifact import Inspection, SiteView, StageView


@click.command(short_help="Show scales, winning rules and losses of an artifact.")
@run_directory_argument
@click.option("--sites", "pattern", default="*", help="Show only sites that match this wildcard.")
@common
@with_output
def inspect(output: Output, directory: Path, pattern: str) -> None:
    """Show an artifact: per tensor the winning rule, bits and scales; per block what learning did.

    Then what the polish did, how many float parameters were retrained, and what weighting had to say.

    DIR is a run directory or an artifact folder. Files are verified before they are read.
    """
    from gacq_deploy.inspection.artifact import inspect_artifact

    result = inspect_artifact(directory)
    head = (
        f"artifact {result.digest[:12]} of model {result.model['source']} "
        f"({result.model['family']}, weights {result.model['weights_sha256'][:12]})"
    )
    output.emit(
        result.document(),
        head,
        _sites(result, pattern),
        _blocks(result),
        *_after_blocks(result),
        _summary(result),
        *next_for(directory),
    )


def _summary(result: Inspection) -> str:
    learned = sum(block.kept for block in result.blocks)
    return f"{len(result.sites)} tensors quantized, {learned} of {len(result.blocks)} blocks learned."


def _sites(result: Inspection, pattern: str) -> Table:
    rows = [_site_row(site) for site in result.sites if fnmatchcase(site.site, pattern)]
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


def _site_row(site: SiteView) -> tuple[object, ...]:
    rule = f"{site.rule} {site.rule_text}" if site.rule else "none"
    how = site.range if site.smoothing is None else f"{site.range}, smoothed {site.smoothing:g}"
    saturated = "" if site.saturated is None else f"{site.saturated:.2%}"
    span = _span(site.scale_min, site.scale_max)
    return (site.site, site.bits, site.granularity, rule, how, span, saturated, site.tie)


def _blocks(result: Inspection) -> Table:
    stages = {stage.stage: stage for stage in result.stages}
    rows = [_block_row(block, stages.get(block.name)) for block in result.blocks]
    columns = [
        "block",
        "tensors",
        "loss before",
        "loss after",
        "kept",
        "weighting",
        "effective samples",
        "weights",
    ]
    return Table("reconstruction", columns, rows)


def _block_row(block: BlockRecord, stage: StageView | None) -> tuple[object, ...]:
    kept = "" if block.kept else "no, nearest rounding was better"
    mode = "" if stage is None else stage.mode
    losses = (f"{block.loss_start:.4g}", f"{block.loss_end:.4g}")
    return (block.name, block.sites, *losses, kept, mode, f"{block.effective_samples:.1f}", _weights(stage))


def _after_blocks(result: Inspection) -> Iterator[Table | str]:
    polish = result.polish
    if polish is not None:
        stage = next((s for s in result.stages if s.stage == "polish"), None)
        columns = [
            "steps",
            "trained",
            "objective",
            "loss before",
            "loss after",
            "kept",
            "effective samples",
            "weights",
        ]
        yield Table("polish", columns, [_polish_row(polish, stage)])
    biases = sum(p.name.endswith(".bias") for p in result.parameters)
    yield f"retrained parameters: {biases} biases, {len(result.parameters) - biases} norm weights"
    yield from (f"note, {stage}: {note}" for stage, note in _notes(result))


def _polish_row(polish: PolishRecord, stage: StageView | None) -> tuple[object, ...]:
    return (
        polish.steps,
        ", ".join(polish.parameters),
        polish.objective,
        f"{polish.loss_start:.4g}",
        f"{polish.loss_end:.4g}",
        "" if polish.kept else "no, it was better before",
        f"{polish.effective_samples:.1f}",
        _weights(stage),
    )


def _notes(result: Inspection) -> list[tuple[str, str]]:
    """Return every (stage, note) once, in the order of calibration."""
    notes = [(block.name, note) for block in result.blocks for note in block.notes]
    if result.polish:
        notes += [("polish", note) for note in result.polish.notes]
    notes += [(stage.stage, note) for stage in result.stages for note in stage.notes]
    return list(dict.fromkeys(notes))


def _weights(stage: StageView | None) -> str:
    return "" if stage is None else _span(stage.weight_min, stage.weight_max)


def _span(low: float, high: float) -> str:
    return f"{low:.5g}" if low == high else f"{low:.3g} .. {high:.3g}"
