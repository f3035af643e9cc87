"""`sensitivity`: which layer costs what INT8 costs, and which should stay float?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gacq_deploy_cli import exit_codes
from gacq_deploy_cli.console import NextStep, Output, Verbatim
from gacq_deploy_cli.options import common, run_directory_argument, with_output
from gacq_deploy_cli.table import Table
from gacq_deploy_cli.units import counted

if TYPE_CHECKING:
    from gacq_deploy.run_directory import RunDirectory
    from gacq_deploy.sensitivity import SensitivityReport
    from gacq_deploy.sensitivity.report import Proposal


@click.command(short_help="Rank layers by what INT8 costs; say which to leave float.")
@run_directory_argument
@click.option(
    "--min-sqnr",
    type=float,
    metavar="DB",
    help="Least SQNR of the output that the worst timestep bucket must reach; default: "
    "parity.budget.eps_sqnr_db of the recipe and 1 dB, since parity measures other states.",
)
@click.option(
    "--max-drop",
    type=float,
    metavar="DB",
    help="Instead: at most so many dB below the best worst bucket that leaving --max-float layers float reaches.",
)
@click.option(
    "--max-float",
    type=click.IntRange(min=0),
    help="Most layers that may stay float; default: a quarter of the quantized ones.",
)
@click.option(
    "--graph",
    help="Exported graph to rank and judge; default: judge all of them, rank the one that is furthest from float.",
)
@click.option("--bucket-count", type=click.IntRange(min=1), help="Timestep buckets; default: the recipe's.")
@click.option(
    "--states",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Probe states to rank on, spread over the timesteps; whole graphs are measured on all.",
)
@click.option("--top", type=click.IntRange(min=1), default=20, show_default=True, help="Layers to show.")
@click.option(
    "--threads", type=click.IntRange(min=0), default=0, help="CPU threads; 0 lets the engine choose."
)
@common
@with_output
def sensitivity(
    output: Output,
    directory: Path,
    min_sqnr: float | None,
    max_drop: float | None,
    max_float: int | None,
    graph: str | None,
    bucket_count: int | None,
    states: int,
    top: int,
    threads: int,
) -> int:
    """Rank the quantized layers by what they cost, and say which to leave float. Writes sensitivity.json.

    The output's error on single steps from float states, as parity's eps_sqnr_db measures it: with one layer
    quantized alone, which ranks them, and with one layer left float, whose gain holds half a dB of luck. Where
    the worst timestep bucket is below the target, a greedy search leaves layers float, the most costly
    first, and builds and measures every graph it tries. Exit 3: the target was not reached.
    """
    from gacq_deploy.run_directory import RunDirectory
    from gacq_deploy.sensitivity import Request, SensitivitySettings, measure_sensitivity

    run = RunDirectory(directory)
    if min_sqnr is None and max_drop is None:
        min_sqnr = _needed(output, run)
    request = Request(min_sqnr=min_sqnr, max_drop=max_drop, max_float=max_float)
    settings = SensitivitySettings(graph=graph, buckets=bucket_count, states=states, threads=threads)
    with output.progress() as report:
        result = measure_sensitivity(run, request=request, settings=settings, report=report)
    output.emit(result.document(), *_tables(result, run.sensitivity_json, top), *_next(run, result))
    return exit_codes.DONE if result else exit_codes.GATE


def _needed(output: Output, run: RunDirectory) -> float | None:
    """Return the target that the gates ask for which parity failed; None: the recipe's own is as strict."""
    from gacq_deploy.parity.remedies import failed_report, needed_sqnr_db

    failed = failed_report(run)
    needed = None if failed is None else needed_sqnr_db(failed)
    if failed is None or needed is None or needed <= failed.protocol.budget.eps_sqnr_db + 1:
        return None
    names = ", ".join(dict.fromkeys(gate.meaning for gate in failed.failed_gates))
    output.note(
        f"parity failed {names}: the target is {needed:g} dB, from how much they lack (--min-sqnr sets it)"
    )
    return needed


def _next(run: RunDirectory, result: SensitivityReport) -> Iterator[NextStep]:
    if not result.proposal.rules:
        if result:
            yield NextStep(("parity", run.root))
        return
    import yaml

    from gacq_deploy.storage.yaml_documents import decode_yaml

    rules = decode_yaml("\n".join(result.proposal.rules)).value
    # a width that no list reaches: yaml would fold it
    added = yaml.safe_dump(rules, default_flow_style=True, width=1_000_000, sort_keys=False).strip()
    where = run.root.with_name(f"{run.root.name}-mixed")
    yield NextStep(("calibrate", "-r", run.recipe_path, "--set", f"quantization.rules+={added}", "-o", where))


def _tables(result: SensitivityReport, path: Path, top: int) -> Iterator[Table | str]:
    bucket = result.buckets[result.worst_bucket]
    yield (
        f"{result.graph} in {result.engine}. SQNR of the output in dB, {len(result.buckets)} timestep buckets, noisy "
        f"to clean; shares, single tensors and gains: of the worst, timesteps {bucket.timestep_max} to "
        f"{bucket.timestep_min}."
    )
    yield Table(
        f"{min(top, len(result.modules))} of {len(result.modules)} layers, the most costly first "
        f"({result.ranked_states} of {result.probe_states} probe states)",
        [
            "layer",
            "share of the error",
            "quantized alone",
            "its weight",
            "its input",
            "its output",
            "gain if left float",
        ],
        _rows(result, top),
    )
    proposal = result.proposal
    if proposal.steps:
        yield Table(
            "search: layers left float, one after the other",
            ["order", "layer", "worst bucket"],
            ((i, s.module, f"{s.worst_db:.2f}") for i, s in enumerate(proposal.steps, start=1)),
        )
    yield Table(
        "whole graphs, all probe states",
        ["graph", "layers left float", "SQNR by bucket", "worst"],
        _graphs(proposal),
    )
    yield from target_lines(proposal)
    yield f"written: {path}"


def _rows(result: SensitivityReport, top: int) -> Iterator[tuple[Any, ...]]:
    worst = result.worst_bucket
    for found in result.modules[:top]:
        by_role = [_level(found.role_db.get(role), worst) for role in ("weight", "input", "output")]
        yield (
            found.module,
            f"{found.share[worst]:.1%}",
            _levels(found.alone_db),
            *by_role,
            f"{found.worst_gain_db:+.2f}",
        )
    yield ("(all of them)", "", _levels(result.quantized_db), "", "", "", "")


def _graphs(proposal: Proposal) -> Iterator[tuple[Any, ...]]:
    for name, before in proposal.before_db.items():
        yield (name, 0, _levels(before), f"{min(before):.2f}")
        if proposal.modules:
            after = proposal.after_db[name]
            yield (name, len(proposal.modules), _levels(after), f"{min(after):.2f}")


def target_lines(proposal: Proposal) -> Iterator[str]:
    """Yield whether the target was reached and by what, and the lines that leave those layers float."""
    target = f"target {proposal.target}"
    yield from proposal.lint_errors
    if not proposal.modules and proposal.reached:
        yield f"{target}: reached as it is; no layer needs to stay float"
        return
    left = counted(len(proposal.modules), "layer")
    found = f"with {left} float the worst bucket is {_worst(proposal.after_db):.2f} dB"
    if not proposal.reached:
        yield f"NOT REACHED: {target}. The best found: {found}. Raise --max-float, or lower the target."
    else:
        yield f"{target}: reached, {found} (before: {_worst(proposal.before_db):.2f})"
    if proposal.rules:
        yield "Add to the end of quantization.rules, then calibrate again (learned scales will differ a little):"
        yield Verbatim("\n".join(f"    {rule}" for rule in proposal.rules))


def _worst(levels: dict[str, tuple[float, ...]]) -> float:
    return min(min(v) for v in levels.values())


def _level(levels: Sequence[float] | None, bucket: int) -> str:
    """Return one bucket's SQNR; nothing where the layer has no quantized tensor of that role."""
    return "" if levels is None else f"{levels[bucket]:.1f}"


def _levels(values: Iterable[float]) -> str:
    return " ".join(f"{v:.1f}" for v in values)
