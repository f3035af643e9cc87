"""Passed, failed, void or not yet judged? One sentence from the digests and the gates, and every gate behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gacq_deploy.errors import shell_command
from gacq_deploy.inspection.verify import Link
from gacq_deploy.parity.remedies import remedies
from gacq_deploy.parity.report import ADVICE, GATES, Comparison, ParityReport
from gacq_deploy.report.collect import Collected, Missing

State = Literal["passed", "failed", "void", "unjudged"]
HEADLINES: dict[State, str] = {
    "passed": "Parity passed",
    "failed": "Parity failed",
    "void": "No valid verdict",
    "unjudged": "Not yet judged",
}
EVIDENCE = {
    "exact": "codes, scales and axes in the file are those of the artifact",
    "flavour": "the CPU graph computes what its signed form computes, bit for bit",
    "exporter": "the exported float graph is the PyTorch model",
    "local": "every block agrees when it is fed the reference's own inputs",
    "error": "the engine is as far from the float model as the reference is",
    "budget": "how far the INT8 model is from the float model: what users see",
    "single": "how far single steps of the INT8 engine are from the float model",
    "mixed": "how far images are from the float model when some steps run in float: what users see",
}
_ONLY_SHOWN = frozenset({"bench", "sensitivity", "comparison"})
"""Links that no verdict rests on: when they are stale, their own part of the page says so."""


@dataclass(frozen=True)
class GateRow:
    """One gate: what was measured, what the recipe asks for, and whether it holds."""

    evidence: str
    meaning: str
    reference: str
    candidate: str
    metric: str
    value: float | None
    bound: float
    sign: str
    holds: bool
    where: str
    """Where it is worst, for a gate that does not hold."""
    advice: str
    """What to do about it, for a gate that does not hold."""


@dataclass(frozen=True)
class FailingComparison:
    """The gates of one comparison that do not hold."""

    candidate: str
    reference: str
    gates: tuple[str, ...]
    """In words: metric, value, bound."""
    where: str


@dataclass(frozen=True)
class FailingEvidence:
    """What of one kind of evidence does not hold, and what helps."""

    evidence: str
    meaning: str
    comparisons: tuple[FailingComparison, ...]
    advice: str


@dataclass(frozen=True)
class Verdict:
    """What the evidence amounts to. ``gates`` are those of the report on disk, stale or not."""

    state: State
    headline: str
    sentences: tuple[str, ...]
    broken: tuple[Link, ...]
    """Stale, altered or damaged files."""
    gates: tuple[GateRow, ...]
    helps: tuple[tuple[str, str], ...] = ()
    """(Why, the command) that may make failed gates hold, in order."""

    @property
    def failures(self) -> tuple[FailingEvidence, ...]:
        """What does not hold, and what helps once for all that it helps."""
        failing = [row for row in self.gates if not row.holds]
        kinds = dict.fromkeys(row.evidence for row in failing)
        return tuple(_failing(kind, [row for row in failing if row.evidence == kind]) for kind in kinds)


def judge_run(found: Collected) -> Verdict:
    """Return the verdict of a run; a report about other files than those in the directory is none."""
    broken = tuple(link for link in found.chain.links if link.status == "fail")
    voiding = [link for link in broken if link.name not in _ONLY_SHOWN]
    report = found.parity if isinstance(found.parity, ParityReport) else None
    gates: tuple[GateRow, ...] = ()
    if report is not None:
        gates = tuple(row for comparison in report.comparisons for row in gate_rows(comparison))
    if voiding:
        state: State = "void"
    elif report is None:
        state = "unjudged"
    else:
        state = "passed" if report else "failed"
    helps: tuple[tuple[str, str], ...] = ()
    if state == "failed" and report is not None and not isinstance(found.recipe, Missing):
        helps = tuple((r.why, shell_command(*r.command)) for r in remedies(report, found.run, found.recipe))
    sentences = _sentences(state, found, report, gates)
    return Verdict(state, HEADLINES[state], sentences, broken, gates, helps)


def gate_rows(comparison: Comparison) -> tuple[GateRow, ...]:
    """Return one row for each gate of a comparison."""
    gates, where = GATES[comparison.evidence], _where(comparison)
    rows = []
    for name, bound in comparison.thresholds.items():
        value, gate = comparison.metrics.get(name), gates[name]
        holds = gate.holds(value, bound)
        sign = "≥" if gate.at_least else "≤"
        row = GateRow(
            evidence=comparison.evidence,
            meaning=EVIDENCE.get(comparison.evidence, ""),
            reference=comparison.reference,
            candidate=comparison.candidate,
            metric=gate.meaning,
            value=value,
            bound=bound,
            sign=sign,
            holds=holds,
            where="" if holds else where,
            advice="" if holds else ADVICE[comparison.evidence],
        )
        rows.append(row)
    return tuple(rows)


def _failing(kind: str, rows: Sequence[GateRow]) -> FailingEvidence:
    pairs = dict.fromkeys((row.candidate, row.reference) for row in rows)
    return FailingEvidence(
        kind, rows[0].meaning, tuple(_failing_pair(pair, rows) for pair in pairs), rows[0].advice
    )


def _failing_pair(pair: tuple[str, str], rows: Sequence[GateRow]) -> FailingComparison:
    own = [row for row in rows if (row.candidate, row.reference) == pair]
    return FailingComparison(*pair, tuple(map(_in_words, own)), own[0].where)


def _in_words(row: GateRow) -> str:
    value = "not evaluated" if row.value is None else f"{row.value:.4g}"
    need = f"{'at least' if row.sign == '≥' else 'at most'} {row.bound:g}"
    return f"{row.metric}: {value}, needs {need}"


def _where(comparison: Comparison) -> str:
    return "; ".join(
        f"{key.replace('_', ' ')}: {value}" for key, value in comparison.worst.items() if value is not None
    )


def _sentences(
    state: State, found: Collected, report: ParityReport | None, gates: tuple[GateRow, ...]
) -> tuple[str, ...]:
    failing = sum(not gate.holds for gate in gates)
    not_judged = () if report is None else tuple(report.not_judged.items())
    left_out = (f"{name} was not judged. {why}" for name, why in not_judged)
    if state == "passed":
        return (f"All {len(gates)} gates hold, and every file is the one that was judged.", *left_out)
    if state == "failed":
        return (f"{failing} of {len(gates)} gates do not hold. Do not ship these graphs.", *left_out)
    if state == "unjudged":
        return ("Nothing says yet whether the INT8 graphs still are the model.", _next_command(found))
    said = "passed" if report else "did not pass"
    old = (
        ()
        if report is None
        else (f"The parity report on disk says '{said}', but not of this state; its numbers stand below.",)
    )
    return (
        "Files in this run directory are stale or were altered, so no verdict holds for them.",
        *old,
        f"`{shell_command('verify', found.run.root)}` checks again.",
    )


def _next_command(found: Collected) -> str:
    root, absent = found.run.root, {link.name for link in found.chain.links if link.status == "absent"}
    if "artifact" in absent:
        return f"Run `{shell_command('calibrate', '-r', found.run.recipe_path, '-o', root)}` first."
    if "graphs" in absent:
        return f"Run `{shell_command('export', '--onnx', root)}`, then `{shell_command('parity', root)}`."
    return f"Run `{shell_command('parity', root)}`."
