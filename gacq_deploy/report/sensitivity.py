"""Which layers cost what INT8 costs, and what leaving some of them float was measured to give? Tables of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gacq_deploy.metrics.arrays import CEILING_DB
from gacq_deploy.report.tables import Cell, ReportTable, name, number, text
from gacq_deploy.sensitivity import SensitivityReport
from gacq_deploy.sensitivity.report import Levels, ModuleSensitivity, Proposal, TimestepBucket
from gacq_deploy.spec import Role

MOST_DETAILED = 100
"""Layers that are shown bucket by bucket; more would make the page large. All stand in the ranking."""


@dataclass(frozen=True)
class SensitivityPart:
    """What the page shows of a study; ``rules`` are lines for a recipe, ``lint_errors`` what is wrong with them."""

    glance: str
    """What one learns in a line."""
    lead: str
    outcome: str
    tone: str
    """"ok", "bad", or "" where the verdict on the run says something else."""
    sentence: str
    ranking: ReportTable
    detail: tuple[ReportTable, ...]
    graphs: ReportTable
    rules: tuple[str, ...]
    search: ReportTable | None
    lint_errors: tuple[str, ...]


def sensitivity_part(report: SensitivityReport, failed: Sequence[str] = ()) -> SensitivityPart:
    """Return tables, and the verdict of the search in a sentence.

    Args:
        report: the study.
        failed: the gates of parity that do not hold, in words. A study looks at the SQNR of single steps alone, so
            its own success is none of the run's then.
    """
    worst = report.buckets[report.worst_bucket]
    return SensitivityPart(
        glance=_glance(report),
        lead=(
            f"{report.graph} in {report.engine}; {report.ranked_states} of {report.probe_states} states of float "
            f"trajectories. It is worst at timesteps {_timesteps(worst)}: "
            f"{report.quantized_db[report.worst_bucket]:.1f} dB. The ranking is of these timesteps."
        ),
        outcome="SQNR target reached." if report else "SQNR target not reached.",
        tone="bad" if not report else "" if failed else "ok",
        sentence=_sentence(report.proposal) + _reservation(failed),
        ranking=_ranking(report),
        detail=_detail(report),
        graphs=_graphs(report),
        rules=report.proposal.rules,
        search=_search(report.proposal),
        lint_errors=report.proposal.lint_errors,
    )


def _glance(report: SensitivityReport) -> str:
    if not report.modules:
        return "no quantized modules"
    most = report.modules[0]
    return f"{len(report.modules)} modules, {most.module} costs most ({most.share[report.worst_bucket]:.0%})"


def _sentence(proposal: Proposal) -> str:
    target = proposal.target
    before, after = (min(map(min, levels.values())) for levels in (proposal.before_db, proposal.after_db))
    if proposal.reached and not proposal.modules:
        return f"{target} is reached as it is, with {before:.2f} dB; no layer needs to stay float."
    gain = f"{before:.2f} dB before, {after:.2f} dB with {_layers(len(proposal.modules))} left float"
    if proposal.reached:
        return f"{target} is reached: {gain}, built and measured."
    return (
        f"{target} is not reached with at most {_layers(proposal.max_float)} float. The best found: {gain}."
    )


def _reservation(failed: Sequence[str]) -> str:
    if not failed:
        return ""
    return (
        f" This is about the SQNR of single steps alone. Parity failed: {'; '.join(dict.fromkeys(failed))}."
    )


def _layers(count: int) -> str:
    return "1 layer" if count == 1 else f"{count} layers"


def _ranking(report: SensitivityReport) -> ReportTable:
    headings = (
        "module", "#share of the error", "#SQNR alone dB", "#its weight dB", "#its input dB", "#its output dB",
        "#gain if left float dB",
    )  # fmt: skip
    rows = [_module(module, report.worst_bucket) for module in report.modules]
    return ReportTable.of(f"{len(rows)} quantized modules, the most costly first", headings, rows)


def _module(module: ModuleSensitivity, bucket: int) -> tuple[Cell, ...]:
    roles: tuple[Role, ...] = ("weight", "input", "output")
    by_role = [_role(module.role_db.get(role), bucket) for role in roles]
    return (
        name(module.module),
        _share(module.share[bucket], "share"),
        _level(module.alone_db[bucket]),
        *by_role,
        _gain(module.worst_gain_db),
    )


def _role(levels: Levels | None, bucket: int) -> Cell:
    """Return the level of one role; one that the graph does not quantize is not a number that is missing."""
    return Cell("") if levels is None else _level(levels[bucket])


def _detail(report: SensitivityReport) -> tuple[ReportTable, ...]:
    """Return share, SQNR and gain of every bucket, of the most costly modules if there are very many."""
    shown = report.modules[:MOST_DETAILED]
    headings = ("module", *(f"#{_timesteps(bucket)}" for bucket in report.buckets))
    of = "" if len(shown) == len(report.modules) else f", {len(shown)} of {len(report.modules)} modules"
    shares = [(name(module.module), *map(_share, module.share)) for module in shown]
    levels = [(name(module.module), *map(_level, module.alone_db)) for module in shown]
    gains = [(name(module.module), *map(_gain, module.gain_db)) for module in shown]
    return (
        ReportTable.of(f"Share of the error, by timesteps{of}", headings, shares),
        ReportTable.of(f"SQNR when only this module is quantized (dB), by timesteps{of}", headings, levels),
        ReportTable.of(f"Gain when only this module is left float (dB), by timesteps{of}", headings, gains),
    )


def _graphs(report: SensitivityReport) -> ReportTable:
    proposal, rows = report.proposal, []
    for graph, before in proposal.before_db.items():
        rows.append(_levels(graph, 0, before))
        if proposal.modules:
            rows.append(_levels(graph, len(proposal.modules), proposal.after_db[graph]))
    headings = ("graph", "#layers left float", "#worst dB", *(f"#{_timesteps(b)}" for b in report.buckets))
    return ReportTable.of("Output SQNR of whole graphs, by timesteps (dB)", headings, rows)


def _levels(graph: str, left_float: int, levels: Levels) -> tuple[Cell, ...]:
    return (name(graph), number(left_float), _level(min(levels)), *(_level(v) for v in levels))


def _search(proposal: Proposal) -> ReportTable | None:
    rows = []
    for i, step in enumerate(proposal.steps, start=1):
        proposed = text("yes" if step.module in proposal.modules else "no")
        rows.append((number(i), name(step.module), _level(step.worst_db), proposed))
    headings = ("#step", "left float as well", "#worst dB", "in the proposal")
    return ReportTable.of("The search, one more module at a time", headings, rows) if rows else None


def _share(value: float, tone: str = "") -> Cell:
    return Cell(f"{value:.1%}", value, tone)


def _level(value: float) -> Cell:
    """Return a level in dB, which sorts as a number even where there is no error at all."""
    return Cell("no error" if value >= CEILING_DB else f"{value:.2f}", value)


def _gain(value: float) -> Cell:
    return Cell(f"{round(value, 2) + 0.0:+.2f}", value)  # + 0.0: a rounded -0 would show as -0.00


def _timesteps(bucket: TimestepBucket) -> str:
    return f"{bucket.timestep_max} to {bucket.timestep_min}"
