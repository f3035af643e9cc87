"""`bench`: is INT8 faster and smaller on this machine?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gacq_deploy_cli.console import NextStep, Output
from gacq_deploy_cli.options import (
    common,
    complete_engine,
    failed_option,
    host_code_option,
    run_directory_argument,
    with_output,
)
from gacq_deploy_cli.table import Table
from gacq_deploy_cli.units import size

if TYPE_CHECKING:
    from gacq_deploy.bench import BenchReport
    from gacq_deploy.bench.report import BenchCandidate
    from gacq_deploy.recipe.sections import RuntimeSection


@click.command(short_help="Measure INT8 against float.")
@run_directory_argument
@click.option(
    "--engine",
    "engines",
    multiple=True,
    shell_complete=complete_engine,
    help="Repeatable; default: ort-cpu, and openvino if installed.",
)
@click.option("--batch", "batches", type=int, multiple=True, help="Batch size, repeatable; default: 1 and 8.")
@click.option("--threads", type=int, default=1, show_default=True, help="CPU threads of every engine.")
@click.option("--repeats", type=int, default=7, show_default=True, help="Rounds; the spread comes from them.")
@host_code_option
@failed_option
@common
@with_output
def bench(
    output: Output,
    directory: Path,
    engines: tuple[str, ...],
    batches: tuple[int, ...],
    threads: int,
    repeats: int,
    allow_host_code: bool,
    allow_failed: bool,
) -> None:
    """Measure the INT8 graphs beside their float baselines, interleaved, in both orders. Writes bench.json.

    Every engine runs in a process of its own. Ratios are of CPU time: above 1 INT8 is faster.
    """
    from gacq_deploy.bench import run_bench
    from gacq_deploy.bench.measure import BenchSettings
    from gacq_deploy.run_directory import RunDirectory

    run = RunDirectory(directory)
    settings = BenchSettings(
        batches or (1, 8), threads, repeats, allow_host_code=allow_host_code, allow_failed=allow_failed
    )
    with output.progress() as report:
        result = run_bench(run, engines=engines or None, settings=settings, report=report)
    mixed = _mixed(result, run.load_recipe().runtime)
    output.emit(
        result.model_dump(mode="json", by_alias=True),
        *_tables(result, run.bench_json),
        *mixed,
        *speed_lines(result),
        NextStep(("report", directory)),
    )


def _tables(result: BenchReport, path: Path) -> tuple[Table | str, ...]:
    graphs = Table(
        f"{result.host.cpu}, threads {result.threads}, rounds {result.repeats}, load {result.host.load_average:g}",
        ["engine and graph", "file", "integer layers"],
        map(_graph_row, result.candidates),
    )
    measured = Table(
        "one pass of the denoiser",
        ["engine and graph", "batch", "CPU ms", "wall ms", "peak memory"],
        _measured(result),
    )
    compared = (_compared(result, baseline) for baseline in dict.fromkeys(r.baseline for r in result.ratios))
    skipped = [f"not measured: {name}: {why}" for name, why in result.skipped.items()]
    return (graphs, measured, *compared, *skipped, f"written: {path}")


def _compared(result: BenchReport, baseline: str) -> Table:
    """Return how much faster everything is than one float graph; beside the ratios its name would not fit."""
    rows = [
        (r.candidate, r.batch, _spread(r.cpu), _spread(r.wall))
        for r in result.ratios
        if r.baseline == baseline
    ]
    title = f"times faster than {baseline} (median, quartiles)"
    return Table(title, ["INT8", "batch", "CPU time", "wall time"], rows)


_LITTLE = 1.2
"""Times faster, below which the reason is said."""
_BUSY = 0.75
"""Load a CPU beside which figures are not to be trusted."""


def speed_lines(result: BenchReport) -> Iterator[str]:
    """Yield how much faster INT8 is at the smallest batch, and why where it is not."""
    from gacq_deploy.doctor.machine import cpu

    first = min(result.batches)
    for ratio in result.ratios:
        if ratio.batch == first:
            speed = ratio.cpu.median
            word = "faster" if speed > 1 else "SLOWER"
            yield f"{ratio.candidate}: {speed:.2f}x the speed of {ratio.baseline} at batch {first} ({word}; CPU time)"
    processor = cpu()
    if processor.status != "ok" and any(ratio.cpu.median < _LITTLE for ratio in result.ratios):
        yield f"{processor.value}. {processor.hint}"
    busy = result.host.load_average
    if busy > _BUSY * (os.cpu_count() or 1):
        yield f"warning: the load was {busy:.1f} on {os.cpu_count()} CPUs: other work blurs these figures"


def _graph_row(candidate: BenchCandidate) -> tuple[str, ...]:
    kernels = candidate.kernels
    share = "" if kernels is None else f"{kernels.integer} of {kernels.planned}"
    return (candidate.name, size(candidate.file_bytes), share)


def _measured(result: BenchReport) -> Iterator[tuple[Any, ...]]:
    for candidate in result.candidates:
        for timing in candidate.timings:
            yield (
                candidate.name,
                timing.batch,
                f"{timing.cpu_ms.median:.3g}",
                f"{timing.wall_ms.median:.3g}",
                size(timing.peak_bytes),
            )


def _mixed(result: BenchReport, runtime: RuntimeSection) -> Iterator[str]:
    """Yield how much faster a trajectory is when the recipe leaves some of its steps in float."""
    asked = runtime.step_policy
    count = asked.float_steps or len(asked.steps)
    for candidate in result.candidates if asked else ():
        for batch in result.batches:
            speed = result.speed(candidate.name, batch, count / runtime.steps)
            if candidate.kernels is not None and speed is not None:
                yield (
                    f"{candidate.name}, batch {batch}, with {count} of {runtime.steps} steps in float: a trajectory is "
                    f"{speed:.2f} times faster than in float (CPU time, computed from the medians)"
                )


def _spread(spread: Any) -> str:
    return f"{spread.median:.2f} ({spread.q1:.2f} .. {spread.q3:.2f})"
