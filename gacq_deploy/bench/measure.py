"""How are engines measured side by side? One clean process each, taking turns in both orders."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gacq_deploy import errors
from gacq_deploy.bench.report import BenchCandidate, IntegerShare, Ratio, Spread, Timing
from gacq_deploy.engines.open import check_threads
from gacq_deploy.errors import BackendUnavailable, EngineError, GacqError, ResourceError, UsageError
from gacq_deploy.graph.quantized_layers import CODES
from gacq_deploy.processes.spawn import child_environment, module_command
from gacq_deploy.progress import SILENT, Reporter
from gacq_deploy.storage.memory import MEMORY_HINT, says_no_memory, says_no_threads

BENCH_STAGES = ("open engines", "measure", "read kernels")
"""As they are announced."""


@dataclass(frozen=True)
class BenchGraph:
    """One graph to measure in one engine; ``planned`` modules are expected in integer kernels.

    Of a compiled graph ``path`` is the engine, ``source`` the graph's file, and ``integer`` what its manifest says.
    """

    engine: str
    path: Path
    planned: tuple[str, ...] = ()
    source: str = ""
    integer: IntegerShare | None = None

    @property
    def file(self) -> str:
        """File name of the graph."""
        return self.source or self.path.name

    @property
    def name(self) -> str:
        """``<engine>/<file>``."""
        return f"{self.engine}/{self.file}"

    @property
    def bytes(self) -> int:
        """Size of the graph and of its weight file."""
        data = self.path.with_name(f"{self.path.name}.data")
        return self.path.stat().st_size + (data.stat().st_size if data.is_file() else 0)


@dataclass(frozen=True)
class Feed:
    """One input: random normal, or integers below ``high``; ``shape`` without the batch."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    high: int = 0

    def document(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape), "high": self.high}


@dataclass(frozen=True)
class BenchSettings:
    """How much is measured: every round runs each engine twice, in one order and in the other."""

    batches: tuple[int, ...] = (1, 8)
    threads: int = 1
    repeats: int = 7
    turn_seconds: float = 0.1
    """A turn of one engine lasts at least about this long."""
    allow_host_code: bool = False
    """Let a version-compatible engine run the code it carries."""
    allow_failed: bool = False
    """Measure engines that failed parity on this machine, too."""

    def __post_init__(self) -> None:
        if not self.batches or min(self.batches) < 1 or len(set(self.batches)) != len(self.batches):
            raise UsageError(
                f"Batch sizes {list(self.batches)} cannot be measured.", "Give distinct sizes from 1."
            )
        check_threads(self.threads)
        if self.threads < 1 or self.repeats < 1:
            raise UsageError(
                f"{self.threads} threads and {self.repeats} rounds were asked for.", "Both start at 1."
            )


@dataclass(frozen=True)
class Measured:
    """Everything that could be measured, and why the rest could not."""

    candidates: tuple[BenchCandidate, ...]
    ratios: tuple[Ratio, ...]
    skipped: dict[str, str]


class WorkerProcess:
    """A running ``gacq_deploy.bench.worker``; a command is one call of :meth:`ask`."""

    def __init__(self, name: str, threads: int) -> None:
        self._name = name
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (closed in __exit__)
        self._process = subprocess.Popen(
            module_command("gacq_deploy.bench.worker"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env=child_environment(OMP_NUM_THREADS=str(threads)),
        )

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send one command and wait for its answer.

        Raises:
            GacqError: what the engine raised in the process, as the same class.
            ResourceError: the process was killed.
            EngineError: the process died of something else.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise AssertionError("started with pipes")
        try:
            stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:  # the process ended, before or after it read the command
            raise self._death()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            kind = getattr(errors, answer["error"], GacqError)
            raise kind(f"{self._name}: {answer['message']}", answer["hint"])
        return answer

    def _death(self) -> GacqError:
        code = self._process.wait()
        self._stderr.seek(0)
        last = self._stderr.read().decode(errors="replace").strip().splitlines()[-1:]
        said = f": {last[0][:300]}" if last else ""
        if code < 0:
            return ResourceError(
                f"{self._name}: the measuring process was killed by signal {-code}{said}.",
                "Signal 9 is mostly the kernel out of memory: use smaller batches.",
            )
        if says_no_memory(said) or says_no_threads(said):
            return ResourceError(
                f"{self._name}: the measuring process was given no more memory{said}.", MEMORY_HINT
            )
        return EngineError(
            f"{self._name}: the measuring process ended with code {code}{said}.",
            "Run the same engine with `gacq-deploy run` to see whether the graph itself is at fault.",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                # closing flushes what a dead process never read
                with suppress(BrokenPipeError):
                    pipe.close()
        self._process.wait()
        self._stderr.close()


@dataclass(frozen=True)
class _Runner:
    """One opened candidate with what is known before the rounds."""

    graph: BenchGraph
    worker: WorkerProcess
    opened: dict[str, Any]
    calls: dict[int, int]
    turn_seconds: dict[int, float]
    peaks: dict[int, int]


def measure_graphs(
    graphs: Sequence[BenchGraph],
    baselines: Sequence[tuple[str, str]],
    feeds: Sequence[Feed],
    settings: BenchSettings,
    *,
    optional: frozenset[str] = frozenset(),
    report: Reporter = SILENT,
) -> Measured:
    """Measure every graph in its own process, interleaved.

    Args:
        graphs: what to measure.
        baselines: pairs (candidate name, baseline name) to compare.
        feeds: the inputs all graphs take.
        settings: batch sizes, threads, rounds.
        optional: engines that are left out, with the reason, when they are not installed.
        report: advances once a turn.

    Raises:
        BackendUnavailable: an engine that is not optional is missing.
        EngineError, ArtifactError, ResourceError: a graph does not open or run.
    """
    skipped: dict[str, str] = {}
    with ExitStack() as stack:
        report.stage(BENCH_STAGES[0], len(graphs))
        runners = []
        for graph in graphs:
            try:
                runners.append(_open(stack, graph, feeds, settings))
            except BackendUnavailable as error:
                if graph.engine not in optional:
                    raise
                # its key says of which graph
                skipped[graph.name] = error.message.removeprefix(f"{graph.name}: ")
            report.advance()
        turns = _take_turns(runners, settings, report)
        report.stage(BENCH_STAGES[2], len(runners))
        candidates = []
        for runner in runners:
            candidates.append(_candidate(runner, turns, settings))
            report.advance()
    ratios = tuple(
        _ratio(a, b, batch, turns)
        for a, b in baselines
        for batch in settings.batches
        if a not in skipped and b not in skipped
    )
    return Measured(tuple(candidates), ratios, skipped)


_Turns = dict[tuple[str, int], list[dict[str, float]]]
"""(candidate name, batch) -> seconds of one call, ``wall`` and ``cpu``, by round."""


def _open(stack: ExitStack, graph: BenchGraph, feeds: Sequence[Feed], settings: BenchSettings) -> _Runner:
    worker = stack.enter_context(WorkerProcess(graph.name, settings.threads))
    opened = worker.ask(
        "open",
        engine=graph.engine,
        model=str(graph.path),
        threads=settings.threads,
        allow_host_code=settings.allow_host_code,
    )
    calls, turn_seconds, peaks = {}, {}, {}
    # smallest first: the peak of a process only ever grows
    for batch in sorted(settings.batches):
        warm = worker.ask(
            "warm", batch=batch, feeds=[f.document() for f in feeds], seconds=settings.turn_seconds
        )
        calls[batch], peaks[batch] = warm["calls"], warm["memory"]
        turn_seconds[batch] = warm["calls"] * warm["once"]
    return _Runner(graph, worker, opened, calls, turn_seconds, peaks)


def _take_turns(runners: Sequence[_Runner], settings: BenchSettings, report: Reporter) -> _Turns:
    """Run the rounds; a round's value is the mean of its two turns, so a steady drift cancels."""
    turns: _Turns = {(r.graph.name, b): [] for r in runners for b in settings.batches}
    both_ways = (*runners, *reversed(runners))
    costs = settings.repeats * [r.turn_seconds[b] for b in settings.batches for r in both_ways]
    report.stage(BENCH_STAGES[1], len(costs), costs)
    for _ in range(settings.repeats):
        for batch in settings.batches:
            pairs: dict[str, list[dict[str, float]]] = {r.graph.name: [] for r in runners}
            for runner in both_ways:
                answer = runner.worker.ask("time", batch=batch, calls=runner.calls[batch])
                pairs[runner.graph.name].append(answer)
                report.advance()
            for name, (first, second) in pairs.items():
                turns[name, batch].append({k: (first[k] + second[k]) / 2 for k in ("wall", "cpu")})
    return turns


def _candidate(runner: _Runner, turns: _Turns, settings: BenchSettings) -> BenchCandidate:
    graph = runner.graph
    timings = []
    for batch in settings.batches:
        rounds = turns[graph.name, batch]
        wall = Spread.of([1000 * r["wall"] for r in rounds])
        cpu = Spread.of([1000 * r["cpu"] for r in rounds])
        timings.append(Timing(batch=batch, wall_ms=wall, cpu_ms=cpu, peak_bytes=runner.peaks[batch]))
    return BenchCandidate(
        name=graph.name,
        engine=graph.engine,
        file=graph.file,
        label=runner.opened["label"],
        file_bytes=graph.bytes,
        load_seconds=runner.opened["seconds"],
        loaded_bytes=runner.opened["memory"],
        timings=tuple(timings),
        kernels=_integer_share(runner) if graph.planned else graph.integer,
    )


def _integer_share(runner: _Runner) -> IntegerShare:
    kernels = runner.worker.ask("kernels")["kernels"]
    missing = tuple(m for m in runner.graph.planned if not kernels.get(f"{m}{CODES}", False))
    planned = len(runner.graph.planned)
    return IntegerShare(planned=planned, integer=planned - len(missing), float_modules=missing)


def _ratio(candidate: str, baseline: str, batch: int, turns: _Turns) -> Ratio:
    # round by round: what slowed the machine for a while slowed both
    pairs = list(zip(turns[baseline, batch], turns[candidate, batch], strict=True))
    # a nanosecond at least, for a CPU clock that did not move
    cpu = Spread.of([b["cpu"] / max(c["cpu"], 1e-9) for b, c in pairs])
    wall = Spread.of([b["wall"] / max(c["wall"], 1e-9) for b, c in pairs])
    return Ratio(candidate=candidate, baseline=baseline, batch=batch, cpu=cpu, wall=wall)
