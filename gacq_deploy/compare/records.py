"""What does one run say of itself? Its records, whether they are about what lies beside them, and what it lacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from gacq_deploy.artifact.artifact import CalibrationArtifact, load_artifact
from gacq_deploy.bench import BenchReport, load_bench
from gacq_deploy.build_trt.manifest import EngineManifest, engines_of
from gacq_deploy.errors import GacqError, shell_command
from gacq_deploy.export.record import ExportRecord, read_record
from gacq_deploy.inspection.commands import RunPart, words_for
from gacq_deploy.inspection.verify import Link, verify_records
from gacq_deploy.parity.report import ParityReport, load_report
from gacq_deploy.progress import SILENT, Reporter
from gacq_deploy.recipe.sections import Recipe
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.workflow.picture import PictureRecord, load_comparison

LoadedT = TypeVar("LoadedT")
RecordName = Literal["artifact", "graphs", "engines", "parity", "bench", "comparison"]
RESTS_ON: Mapping[RecordName, tuple[str, ...]] = {
    "artifact": ("artifact",),
    "graphs": ("artifact", "graphs"),
    "engines": ("artifact", "graphs", "engines"),
    "parity": ("artifact", "graphs", "parity"),
    "bench": ("artifact", "graphs", "bench"),
    "comparison": ("artifact", "graphs", "comparison"),
}
"""Record -> links of the chain that must hold before its figures are about this run."""
_WANTED: Mapping[RecordName, tuple[RunPart, str]] = {
    "artifact": ("artifact", "It is not calibrated yet: nothing is known of it."),
    "graphs": (
        "graphs",
        "It is not exported yet: neither its size, nor its quality, nor its speed is known.",
    ),
    "parity": ("parity", "It is not judged yet: its quality is not known."),
    "bench": ("bench", "It is not measured yet: its speed is not known."),
    "comparison": (
        "report",
        "It has no comparison.png, which only quickstart draws; a report page has images of its own.",
    ),
}
"""Record that a comparison shows -> what makes it, and what is missing without it."""


@dataclass(frozen=True)
class Lack:
    """Something that a run does not have, or has about other files than lie there."""

    part: RecordName
    status: Literal["absent", "stale or damaged"]
    reason: str
    words: tuple[str, ...]
    """Of the command that makes it, or makes it again."""

    @property
    def command(self) -> str:
        """The same as a shell takes it."""
        return shell_command(*self.words)


@dataclass(frozen=True)
class RunRecords:
    """One run; a record that is not there, or is damaged, is None."""

    run: RunDirectory
    links: Mapping[str, Link]
    """By name, of the whole chain."""
    recipe: Recipe | None
    artifact: CalibrationArtifact | None
    export: ExportRecord | None
    engines: tuple[EngineManifest, ...]
    parity: ParityReport | None
    bench: BenchReport | None
    picture: PictureRecord | None

    def is_current(self, source: RecordName) -> bool:
        """Return whether a record is about what lies in the run now."""
        return all(self.links[name].is_intact for name in RESTS_ON[source])

    @property
    def lacks(self) -> tuple[Lack, ...]:
        """What is stale or damaged, and what is absent and can be made now; in the order in which it is made."""
        return tuple(self._lacks())

    def _lacks(self) -> Iterator[Lack]:
        can_be_made = True
        for source, (part, missing) in _WANTED.items():
            link = self.links[source]
            if link.status == "fail":
                also = " A report page has images of its own." if source == "comparison" else ""
                yield Lack(source, "stale or damaged", f"{link.detail}{also}", words_for(part, self.run))
            elif link.status == "absent" and can_be_made:
                yield Lack(source, "absent", missing, words_for(part, self.run))
            can_be_made &= link.is_intact or source not in ("artifact", "graphs")


def read_records(run: RunDirectory, report: Reporter = SILENT) -> RunRecords:
    """Read a run, every file checked against its digest.

    Raises:
        ArtifactError: ``run`` is no run directory.
    """
    run.require()
    links = {link.name: link for link in verify_records(run).links}
    report.advance()
    return RunRecords(
        run=run,
        links=links,
        recipe=_loaded(run.load_recipe),
        artifact=_loaded(lambda: load_artifact(run.artifact)),
        export=_loaded(lambda: read_record(run)),
        engines=_loaded(lambda: tuple(record for _, record in engines_of(run))) or (),
        parity=_loaded(lambda: load_report(run.parity_json)),
        bench=_loaded(lambda: load_bench(run.bench_json)),
        picture=_loaded(lambda: load_comparison(run)),
    )


def _loaded(load: Callable[[], LoadedT]) -> LoadedT | None:
    """Return what ``load`` reads; None where it cannot: the run's link then says why."""
    try:
        return load()
    except GacqError:
        return None
