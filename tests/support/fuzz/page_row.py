"""The report page: whatever its records hold, it is drawn, and says what it could not show."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from random import Random

from gacq_deploy.errors import ArtifactError
from gacq_deploy.report.collect import collect
from gacq_deploy.report.stage import render
from gacq_deploy.report.verdict import judge_run
from tests.support.fuzz.inputs import Input
from tests.support.fuzz.reader import FuzzedReader, Opened
from tests.support.fuzz.record_rows import FILES, restructured
from tests.support.fuzz.run_of_records import run_of_records


def _open(folder: Path) -> Opened:
    run = run_of_records(folder)
    paths = {f"{name}.json": record.path(run) for name, record in FILES.items()}
    healthy = {kind: Input(kind, path.read_bytes()) for kind, path in paths.items()}

    def draw() -> None:
        found = collect(run, images=False)
        render(found, judge_run(found))

    draw_healthy = cache(draw)

    def read(tried: Input) -> None:
        path = paths[tried.kind]
        path.write_bytes(tried.data)
        try:
            # with any of its files as it was left, the run is the same
            draw_healthy() if tried == healthy[tried.kind] else draw()
        finally:
            path.write_bytes(healthy[tried.kind].data)

    return Opened(tuple(healthy.values()), read)


def _restructure(rng: Random, tried: Input) -> Input:
    return restructured(rng, tried, FILES[tried.kind.removesuffix(".json")].beside)


PAGE = FuzzedReader(_open, _restructure, ArtifactError, tries=8, most_calls=4_000_000, refuses_most=False)
