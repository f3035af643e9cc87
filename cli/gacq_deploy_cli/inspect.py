"""`inspect`: what calibration learned, and which rule of the recipe asked for it."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gacq_deploy_cli.console import Output, Table
from gacq_deploy_cli.options import common, run_directory_argument, with_output

if TYPE_CHECKING:
    from gacq_deploy.inspection.artifact import Inspection, StageView


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
    output.emit(result.document(), head, _sites(result, pattern), _blocks(result), *_after_blocks(result))


def _sites(result: Inspection, pattern: str) -> Table:
    rows = [
        (
            s.site,
            s.bits,
            s.granularity,
            f"{s.rule} {s.rule_text}" if s.rule else "none",
            s.range if s.smoothing is None else f"{s.range}, smoothed {s.smoothing:g}",
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
    modes = {stage.stage: stage for stage in result.stages}
    rows = [
        (
            b.name,
            b.sites,
            f"{b.loss_start:.4g}",
            f"{b.loss_end:.4g}",
            "" if b.kept else "no, nearest rounding was better",
            modes[b.name].mode if b.name in modes else "",
            f"{b.effective_samples:.1f}",
            _weights(modes.get(b.name)),
        )
        for b in result.blocks
    ]
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


def _after_blocks(result: Inspection) -> Iterator[Table | str]:
    polish = result.polish
    if polish is not None:
        rows = [
            (
                polish.steps,
                ", ".join(polish.parameters),
                polish.objective,
                f"{polish.loss_start:.4g}",
                f"{polish.loss_end:.4g}",
                "" if polish.kept else "no, it was better before",
                f"{polish.effective_samples:.1f}",
                _weights(next((s for s in result.stages if s.stage == "polish"), None)),
            )
        ]
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
        yield Table("polish", columns, rows)
    biases = sum(p.name.endswith(".bias") for p in result.parameters)
    yield f"retrained parameters: {biases} biases, {len(result.parameters) - biases} norm weights"
    yield from (f"note, {stage}: {note}" for stage, note in _notes(result))


def _notes(result: Inspection) -> list[tuple[str, str]]:
    """Return every (stage, note) once, in the order of calibration."""
    notes = [(block.name, note) for block in result.blocks for note in block.notes]
    notes += [("polish", note) for note in (result.polish.notes if result.polish else ())]
    notes += [(stage.stage, note) for stage in result.stages for note in stage.notes]
    return list(dict.fromkeys(notes))


def _weights(stage: StageView | None) -> str:
    return "" if stage is None else _span(stage.weight_min, stage.weight_max)


def _span(low: float, high: float) -> str:
    return f"{low:.5g}" if low == high else f"{low:.3g} .. {high:.3g}"
