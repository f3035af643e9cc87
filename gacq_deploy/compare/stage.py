"""The comparison, in order: read every run, find what forbids to compare, put the figures side by side."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gacq_deploy.artifact.artifact import CalibrationArtifact
from gacq_deploy.compare.grounds import Ground, Topic, find_grounds
from gacq_deploy.compare.records import Lack, RunRecords, read_records
from gacq_deploy.compare.rows import ComparedRow, compare_figures
from gacq_deploy.errors import UsageError
from gacq_deploy.parity.report import FailedGate
from gacq_deploy.progress import SILENT, Reporter
from gacq_deploy.recipe.presets import preset_of
from gacq_deploy.run_directory import AnyRun, RunDirectory, as_run


@dataclass(frozen=True)
class RunComparison:
    """Runs side by side, in the order in which they were named."""

    names: tuple[str, ...]
    """Short ones, which tell the runs apart."""
    records: tuple[RunRecords, ...]
    facts: tuple[tuple[str, tuple[str, ...]], ...]
    """What each run is: name of the fact -> its word for every run."""
    grounds: tuple[Ground, ...]
    """Why some figures are not ranked."""
    rows: tuple[ComparedRow, ...]

    @property
    def failed_gates(self) -> tuple[tuple[str, FailedGate], ...]:
        """Run and gate that does not hold, run by run."""
        return tuple(
            (name, gate)
            for name, record in zip(self.names, self.records, strict=True)
            for gate in (() if record.parity is None else record.parity.failed_gates)
        )

    def document(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "runs": [self._run(place) for place in range(len(self.names))],
            "not_ranked": [
                {"topics": sorted(ground.topics), "reason": ground.sentence} for ground in self.grounds
            ],
            "rows": [_row(row) for row in self.rows],
        }

    def _run(self, place: int) -> dict[str, Any]:
        record, name = self.records[place], self.names[place]
        return {
            "name": name,
            "directory": str(record.run.root),
            "facts": {fact: words[place] for fact, words in self.facts},
            "failed_gates": [asdict(gate) for run, gate in self.failed_gates if run == name],
            "lacks": [_lack(lack) for lack in record.lacks],
        }


def compare_runs(directories: Sequence[AnyRun], *, report: Reporter = SILENT) -> RunComparison:
    """Put what the records of several runs say side by side; nothing is run, and nothing written.

    Args:
        directories: two runs or more.
        report: hears of each run.

    Raises:
        ArtifactError: one is no run directory.
        UsageError: fewer than two, or one twice.
    """
    runs = [as_run(directory) for directory in directories]
    for run in runs:
        run.require()
    _require_several(runs)
    report.stage("read runs", len(runs))
    records = tuple(read_records(run, report) for run in runs)
    names = _short_names(runs)
    grounds = find_grounds(records, names)
    unranked: frozenset[Topic] = frozenset().union(*(ground.topics for ground in grounds))
    return RunComparison(names, records, tuple(_facts(records)), grounds, compare_figures(records, unranked))


def _require_several(runs: Sequence[RunDirectory]) -> None:
    places = [run.root.resolve() for run in runs]
    twice = [run.root for run, place in zip(runs, places, strict=True) if places.count(place) > 1]
    if twice:
        raise UsageError(f"{twice[0]} is named twice.", "Name each run once.")
    if len(runs) < 2:
        raise UsageError(
            f"A comparison takes two runs or more, got {len(runs)}.",
            "Name another one; `gacq-deploy list` shows which there are.",
        )


def _short_names(runs: Sequence[RunDirectory]) -> tuple[str, ...]:
    roots = [run.root.resolve() for run in runs]
    base = Path(os.path.commonpath(roots))
    if base in roots:  # one lies in another
        return tuple(str(run.root) for run in runs)
    return tuple(str(root.relative_to(base)) for root in roots)


def _facts(records: Sequence[RunRecords]) -> Iterator[tuple[str, tuple[str, ...]]]:
    tellers: dict[str, Callable[[RunRecords], str]] = {
        "folder": lambda record: str(record.run.root),
        "model": lambda record: record.recipe.model.source if record.recipe else "",
        "weights": lambda record: record.artifact.model.weights_sha256[:12] if record.artifact else "",
        "recipe": lambda record: record.recipe.name if record.recipe else "",
        "effort": _effort,
        "bits": lambda record: _bits(record.artifact) if record.artifact else "",
        "quantized layers": lambda record: _layers(record.artifact) if record.artifact else "",
        "float steps": _float_steps,
        "artifact": lambda record: record.artifact.manifest_digest[:12] if record.artifact else "",
        "parity": _verdict_words,
    }
    for fact, tell in tellers.items():
        words = tuple(tell(record) for record in records)
        if any(words):
            yield fact, words


def _effort(record: RunRecords) -> str:
    if record.recipe is None:
        return ""
    preset = preset_of(record.recipe)
    return f"preset {preset}" if preset else "of no preset"


def _bits(artifact: CalibrationArtifact) -> str:
    bits: dict[str, set[int]] = {}
    for entry in artifact.plan:
        bits.setdefault("W" if entry.site.role == "weight" else "A", set()).add(entry.spec.bits)
    told = {kind: "/".join(map(str, sorted(found))) for kind, found in bits.items()}
    return (
        f"W{told.get('W', ' float')}A{told['A']}"
        if "A" in told
        else f"W{told.get('W', ' float')}, float inputs"
    )


def _layers(artifact: CalibrationArtifact) -> str:
    return str(sum(entry.site.role == "weight" for entry in artifact.plan))


def _float_steps(record: RunRecords) -> str:
    policy = None if record.parity is None else record.parity.step_policy
    if policy is None or not policy.float_timesteps:
        return ""
    return f"{len(policy.float_timesteps)} of {len(policy.timesteps)}"


def _verdict_words(record: RunRecords) -> str:
    if record.parity is None:
        return "not judged"
    if not record.is_current("parity"):
        return "stale"
    return "passed" if record.parity else "FAILED"


def _row(row: ComparedRow) -> dict[str, Any]:
    return {**asdict(row.key), "values": [value and asdict(value) for value in row.values], "best": row.best}


def _lack(lack: Lack) -> dict[str, str]:
    return {"part": lack.part, "status": lack.status, "reason": lack.reason, "command": lack.command}
