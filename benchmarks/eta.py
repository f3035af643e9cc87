"""How right is the time that the display says is left? Real commands are recorded, and the display played again.

``python -m benchmarks.eta`` (six minutes, two quiet cores) runs calibrate, export, parity, sensitivity and bench on the
demo model, presets ``ci`` and ``quick``, and on a small random Stable Diffusion. Every report is written with its time
to ``benchmarks/results/eta_streams.jsonl``. The display's account of a stage then plays them with a clock that moves
as the recorded one did, and is asked every quarter of a second what is left. The factor is by how much that is wrong at
the worst moment after the first tenth of the stage; ``unknown`` is the share of it in which nothing is said, for a
library does not tell how far it is. ``--replay`` only plays. A machine that is busy with other things now and then
makes any forecast wrong: record on a quiet one.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.store import RESULTS, load_rows, write_rows
from gacq_deploy.bench.stage import run_bench
from gacq_deploy.calibration.cost.estimate import CalibrationEstimate
from gacq_deploy.calibration.stage import calibrate
from gacq_deploy.export.stage import export_onnx
from gacq_deploy.parity.stage import check_parity
from gacq_deploy.progress import PlannedStage
from gacq_deploy.recipe.load import load_recipe
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.sensitivity.stage import measure_sensitivity
from gacq_deploy_cli.progress import Course
from tests.support.models.pipelines import make_stable_diffusion

STREAMS = RESULTS / "eta_streams.jsonl"
LOOK_S = 0.25
LEAST_S = 4.0
"""Stages that end sooner are seen in one or two frames."""


class Stream:
    """A reporter that writes down what it is told, and when."""

    def __init__(self) -> None:
        self.events: list[list[Any]] = []
        self._began = time.monotonic()

    def plan(self, stages: Sequence[PlannedStage]) -> None:
        """Note the plan."""
        self._note("plan", [list(stage) for stage in stages])

    def stage(self, name: str, total: int, costs: Sequence[float] = ()) -> None:
        """Note the begin of a stage."""
        self._note("stage", name, total, [float(f"{cost:.3g}") for cost in costs])

    def advance(self, n: int = 1, **values: float) -> None:  # noqa: ARG002 (a Reporter's signature)
        """Note units; those that follow at once are added up, nobody sees them come one by one."""
        last = self.events[-1] if self.events else None
        now = round(time.monotonic() - self._began, 2)
        if last and last[1] == "advance" and now - last[0] < LOOK_S / 5:
            last[2] += n
        else:
            self._note("advance", n)

    def note(self, text: str) -> None:
        """Ignore."""

    def end(self) -> list[list[Any]]:
        """Return all that was noted."""
        self._note("end")
        return self.events

    def _note(self, *said: Any) -> None:
        self.events.append([round(time.monotonic() - self._began, 2), *said])


class Said(NamedTuple):
    """What the display said of a stage that took ``seconds``: pairs of elapsed and left seconds, None where unknown."""

    name: str
    seconds: float
    left: list[tuple[float, float | None]]

    @property
    def judged(self) -> list[tuple[float, float | None]]:
        """True and said seconds after the first tenth, while more than 5 % and 1 s are left."""
        least = max(1.0, 0.05 * self.seconds)
        pairs = [
            (self.seconds - elapsed, said) for elapsed, said in self.left if elapsed >= self.seconds / 10
        ]
        return [(true, said) for true, said in pairs if true > least]

    @property
    def worst(self) -> float | None:
        """The largest factor between what is left and what was said."""
        return max((_factor(said, true) for true, said in self.judged if said is not None), default=None)

    @property
    def unknown(self) -> float:
        """In which share of the stage nothing was said."""
        return sum(said is None for _, said in self.judged) / max(1, len(self.judged))


def replayed(events: Sequence[Sequence[Any]]) -> Iterator[Said]:
    """Play a stream before the display's account of stages; yield what it said of each."""
    now = look = 0.0
    course = Course(lambda: now)
    running: tuple[str, float, list[tuple[float, float | None]]] | None = None
    for at, kind, *said in events:
        while look < at:
            now = look
            if running:
                running[2].append((now - running[1], course.stage_left()))
            look += LOOK_S
        now = at
        if kind in ("stage", "end") and running:
            yield Said(running[0], at - running[1], running[2])
        if kind == "plan":
            course.plan([PlannedStage(*stage) for stage in said[0]])
        elif kind == "stage":
            course.begin(*said)
            running = (said[0], at, [])
        elif kind == "advance":
            course.advance(said[0], {})


def _factor(said: float, true: float) -> float:
    return max(said / true, true / said) if said > 0 else float("inf")


def _ask(estimate: CalibrationEstimate) -> None:
    """Want to know what is estimated: else no stage is planned."""


def commands(folder: Path) -> Iterator[tuple[str, Callable[..., object]]]:
    """Yield what is recorded, in order: each is run before the next is asked for."""
    for name, recipe, source, preset in (
        ("demo, ci", "fashion-w8a8", "builtin:fashion16", "ci"),
        ("demo, quick", "fashion-w8a8", "builtin:fashion16", "quick"),
        ("toy Stable Diffusion, ci", "sd15-w8a8", str(make_stable_diffusion(folder / "model")), "ci"),
    ):
        chosen = load_recipe(recipe, preset=preset, model={"source": source})
        run = RunDirectory(folder / name)
        yield f"{name}: calibrate", partial(calibrate, chosen, run, foresee=_ask)
        yield f"{name}: export", partial(export_onnx, run)
        yield f"{name}: parity", partial(check_parity, run)
        yield f"{name}: sensitivity", partial(measure_sensitivity, run)
        yield f"{name}: bench", partial(run_bench, run)


def record() -> None:
    """Run every command and write its stream."""
    streams: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, run in commands(Path(folder)):
            print(name, flush=True)
            stream = Stream()
            run(report=stream)
            streams[name] = {"events": stream.end()}
    write_rows(STREAMS, streams, {"command": "python -m benchmarks.eta"})


def main() -> None:
    """Record unless told otherwise, and print the factor of every stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replay", action="store_true", help="play what was recorded")
    if not parser.parse_args().replay:
        record()
    for name, stream in load_rows(STREAMS).items():
        for said in replayed(stream["events"]):
            if said.seconds >= LEAST_S:
                worst = None if said.worst is None else round(said.worst, 2)
                row = {"run": name, "stage": said.name, "seconds": round(said.seconds, 1)}
                print(json.dumps(row | {"factor": worst, "unknown": round(said.unknown, 2)}))


if __name__ == "__main__":
    main()
