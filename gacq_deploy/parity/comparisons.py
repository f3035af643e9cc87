"""Which comparisons does a run directory need, and what does each of them measure?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from gacq_deploy.artifact.artifact import CalibrationArtifact
from gacq_deploy.artifact.probe import Probe
from gacq_deploy.backends.base import Engine
from gacq_deploy.backends.batches import run_in_batches
from gacq_deploy.backends.mixed_steps import SteppedEngine
from gacq_deploy.engines.catalogue import REFERENCE
from gacq_deploy.errors import EngineError, ExportError
from gacq_deploy.export.cpu_flavour import signed_form
from gacq_deploy.graph.quantizers import openable
from gacq_deploy.metrics.arrays import relative_error
from gacq_deploy.metrics.error_difference import compare_errors
from gacq_deploy.parity.budget import (
    FloatTrajectories,
    Held,
    compare_trajectories,
    compare_with_float,
    describe_comparison,
    hold_out,
    run_freely,
)
from gacq_deploy.parity.candidates import FILES, FLOAT, FLOAT_STAGE, Candidate, stages_of_candidate
from gacq_deploy.parity.cut import cut_at_quantizers, expose_quantized
from gacq_deploy.parity.difference import ErrorMeasure, measure_noise_floor
from gacq_deploy.parity.exact import (
    CPU,
    Difference,
    compare_float_file,
    compare_quantized_file,
)
from gacq_deploy.parity.layout import fit_recordings
from gacq_deploy.parity.local import LocalReference, compare_segments
from gacq_deploy.parity.report import AT_BATCH, Comparison, Evidence, ParityReport, assemble, measured
from gacq_deploy.parity.rows_run import CountedEngine, RowsRun
from gacq_deploy.progress import SILENT, Reporter
from gacq_deploy.recipe.sections import ParitySection
from gacq_deploy.samples.calibration_set import timestep_buckets
from gacq_deploy.sampling.step_policy import StepPolicy
from gacq_deploy.spec import Array
from gacq_deploy.storage.digests import digest_array

_SHOWN = 20
"""Differences, or tensors, that a record lists; their number is a metric."""


class EngineFactory(Protocol):
    """Opens a graph in a named engine, as :func:`gacq_deploy.engines.open.open_engine` does."""

    def __call__(self, name: str, model: Path | bytes, *, threads: int = 0, optimize: bool = True) -> Engine:
        """Return the opened engine."""


@dataclass(frozen=True)
class Subject:
    """What is judged: the artifact, its probe, the float graph and the quantized ones by file name."""

    artifact: CalibrationArtifact
    probe: Probe
    float_graph: ModelProto
    graphs: Mapping[str, ModelProto]


@dataclass(frozen=True)
class CompiledEngine:
    """An engine that runs nothing but what was compiled for it: it opens a graph by its file's name.

    ``batches`` are the corners of what it was compiled for; the error is measured at each of them. ``key`` names it.
    """

    open: Callable[[str], Engine]
    batches: tuple[int, ...]
    key: str = ""


class Keeper(Protocol):
    """Takes up an engine's output for every row of the probe, as it is measured."""

    def __call__(self, graph: str, name: str, engine: Engine, rows: Array) -> None:
        """Take ``rows`` [M, C, H, W] of the engine reported as ``name``, opened on the file ``graph``."""


def _forget(graph: str, name: str, engine: Engine, rows: Array) -> None:
    """Keep nothing."""


@dataclass(frozen=True)
class Setting:
    """How it is judged."""

    section: ParitySection
    open_engine: EngineFactory
    batch: int = 16
    threads: int = 0
    report: Reporter = SILENT
    policy: StepPolicy | None = None
    """Which steps run in float: trajectories and images are then judged as the mix makes them."""
    compiled: Mapping[str, CompiledEngine] = field(default_factory=dict)
    """Library -> its engine. One cannot be cut into blocks, so there is no local evidence of it."""
    keep: Keeper = _forget


def measure_comparisons(
    subject: Subject, candidates: Sequence[Candidate], setting: Setting, about: Mapping[str, Any]
) -> ParityReport:
    """Measure every kind of evidence on every comparison and judge it.

    Args:
        subject: artifact and graphs.
        candidates: which graph in which engine.
        setting: recipe section and engines.
        about: what to record about the subject, for instance digests.

    An engine that fails to load or run makes its comparisons unevaluated, and so failed; a missing backend raises.
    """
    stage = _Stage(subject, setting)
    comparisons = [*stage.exact(candidates), *stage.exporter()]
    for candidate in candidates:
        comparisons.extend(stage.candidate(candidate))
    return assemble(
        tuple(comparisons),
        setting.section,
        trajectory=stage.trajectory,
        noise_floor=stage.noise_floor,
        subject=dict(about),
    )


class _Stage:
    """One measurement: what several comparisons need is computed once."""

    def __init__(self, subject: Subject, setting: Setting) -> None:
        self._subject, self._setting = subject, setting
        self._section = setting.section
        self._probe = subject.probe
        self._buckets: NDArray[np.int64] = timestep_buckets(
            self._probe.inputs["timestep"], self._section.buckets
        )
        self._held: Held = hold_out(subject.artifact.model, self._probe, self._section, setting.batch)
        self._truth: FloatTrajectories | None = None
        self._rows: RowsRun | None = None
        self.noise_floor: dict[str, Any] = {}
        self.trajectory: dict[str, Any] = {
            "first_seed": self._section.seed,
            "images": self._section.images,
            "steps": self._section.steps,
            "by_step": {},
        }

    def exact(self, candidates: Sequence[Candidate]) -> Iterator[Comparison]:
        """Files against the artifact."""
        self._setting.report.stage(FILES, 1)
        artifact, float_graph = self._subject.artifact, self._subject.float_graph
        yield _exact_comparison("float.onnx", compare_float_file(artifact, float_graph))
        for flavour in dict.fromkeys(c.flavour for c in candidates):
            graph = self._subject.graphs[flavour.file]
            yield _exact_comparison(
                flavour.file, compare_quantized_file(artifact, float_graph, graph, flavour)
            )
            if flavour is CPU:
                yield from self._guarded("flavour", (f"{CPU.file} signed form", CPU.file), self._signed_form)
        self._setting.report.advance()

    def exporter(self) -> Iterator[Comparison]:
        """Torch float against the float graph; the float trajectories start from the same engine."""
        expected = self._probe_rows * self._runs_on_probe + self._walked
        with self._counting(FLOAT_STAGE, expected):
            yield from self._guarded("exporter", ("torch/float", FLOAT), self._exporter)

    def candidate(self, candidate: Candidate) -> Iterator[Comparison]:
        """Local evidence, error difference and budget of one candidate."""
        names = (candidate.reference, candidate.name)
        compiled = self._setting.compiled.get(candidate.engine)
        batches = (self._setting.batch,) if compiled is None else compiled.batches
        policy = self._setting.policy
        evidence: Literal["budget", "single"] = "budget" if policy is None else "single"
        # what the graph computes as it is written is recorded in torch for the reference, and run for the others
        runs = self._runs_on_probe + (candidate.engine != REFERENCE)
        walks = 2 if policy is None else 3
        # stages of their own: an engine may be several times as fast, row for row, in one as in the other
        states, images = stages_of_candidate(candidate)
        with self._counting(states, len(batches) * runs * self._probe_rows):
            if compiled is None:
                yield from self._guarded("local", names, lambda: self._local(candidate))
            for batch in batches:
                named = names if compiled is None else (names[0], f"{names[1]}{AT_BATCH}{batch}")
                yield from self._guarded("error", named, partial(self._error, candidate, batch, named))
        names = (FLOAT, candidate.name)
        with self._counting(images, walks * self._walked):
            yield from self._guarded(evidence, names, lambda: self._budget(candidate, evidence))
            if policy is not None:
                yield from self._guarded("mixed", names, lambda: self._mixed(candidate, policy))

    @property
    def _probe_rows(self) -> int:
        return len(self._probe.inputs["sample"])

    @property
    def _runs_on_probe(self) -> int:
        """How often an engine runs on the probe: its output, then its noise floor."""
        return 1 + 2 * self._section.noise_floor_runs

    @property
    def _walked(self) -> int:
        """Rows of all trajectories, from noise to image."""
        held = self._held
        return len(held.seeds) * len(held.sampler.timesteps) * held.conditions.branches

    @contextmanager
    def _counting(self, name: str, expected: int) -> Iterator[None]:
        """Count the rows of every engine that is opened within, as one stage."""
        self._rows = RowsRun(self._setting.report, name, expected)
        try:
            yield
        finally:
            self._rows.end()

    def _guarded(
        self, evidence: Evidence, names: tuple[str, str], work: Callable[[], Comparison]
    ) -> Iterator[Comparison]:
        try:
            yield work()
        except (EngineError, ExportError) as error:
            # a comparison without numbers does not pass, and the others still tell where it goes wrong
            yield measured(evidence, *names, {}, worst={"error": error.message})

    def _open(
        self, engine: str, graph: ModelProto, work: Callable[[Engine], Any], *, optimize: bool = True
    ) -> Any:
        with (
            openable(graph) as model,
            self._setting.open_engine(
                engine, model, threads=self._setting.threads, optimize=optimize
            ) as opened,
        ):
            return work(self._counted(opened))

    def _open_file(self, engine: str, file: str, work: Callable[[Engine], Any]) -> Any:
        compiled = self._setting.compiled.get(engine)
        if compiled is None:
            whole = {"float.onnx": self._subject.float_graph, **self._subject.graphs}
            return self._open(engine, whole[file], work)
        with compiled.open(file) as opened:
            return work(self._counted(opened))

    def _counted(self, engine: Engine) -> Engine:
        return engine if self._rows is None else CountedEngine(engine, self._rows)

    def _outputs(self, engine: str, graph: ModelProto, *, optimize: bool = True) -> Array:
        def work(opened: Engine) -> Array:
            return run_in_batches(opened, self._probe.inputs, self._setting.batch)

        outputs: Array = self._open(engine, graph, work, optimize=optimize)
        return outputs

    def _signed_form(self) -> Comparison:
        graph = self._subject.graphs[CPU.file]
        # without optimizations each node is computed as it is written, whatever kernels there are for it
        one = self._outputs(REFERENCE, graph, optimize=False)
        other = self._outputs(REFERENCE, signed_form(graph), optimize=False)
        gap = float(np.abs(one.astype(np.float64) - other).max())
        return measured("flavour", f"{CPU.file} signed form", CPU.file, {"max_abs": gap})

    def _exporter(self) -> Comparison:
        def work(engine: Engine) -> Comparison:
            outputs = run_in_batches(engine, self._probe.inputs, self._setting.batch)
            self._setting.keep("float.onnx", FLOAT, engine, outputs)
            exact = self._probe.outputs["float"]
            self.noise_floor[FLOAT] = self._noise(engine, outputs)
            self._truth = run_freely(engine, self._held)
            self.trajectory["latents_sha256"] = digest_array(self._truth.states[0])
            if compared := describe_comparison(self._truth):
                self.trajectory["compared"] = compared
            metrics = {"relative_error": relative_error(exact, outputs)}
            return measured("exporter", "torch/float", FLOAT, metrics, engine=engine.label)

        comparison: Comparison = self._open(REFERENCE, self._subject.float_graph, work)
        return comparison

    def _local(self, candidate: Candidate) -> Comparison:
        graph = self._subject.graphs[candidate.flavour.file]
        reference = self._local_reference(candidate, graph)
        cut = cut_at_quantizers(graph, reference.recorded)
        planned = [str(e.site) for e in self._subject.artifact.plan if e.site.role in candidate.flavour.roles]

        def work(engine: Engine) -> Comparison:
            result = compare_segments(engine, cut, reference, planned=planned, rtol=self._section.local_rtol)
            return measured(
                "local",
                candidate.reference,
                candidate.name,
                result.metrics(),
                engine=engine.label,
                segments=result.segments,
                worst={"unchecked": ", ".join(result.unchecked[:_SHOWN]) or None},
            )

        comparison: Comparison = self._open(candidate.engine, cut.model, work)
        return comparison

    def _local_reference(self, candidate: Candidate, graph: ModelProto) -> LocalReference:
        inputs = self._probe.local["inputs"]
        scales = {
            str(e.site): float(self._subject.artifact.params[e.site].scale)
            for e in self._subject.artifact.plan
            if e.site.role != "weight"
        }
        if candidate.engine == REFERENCE:
            local = self._probe.local[candidate.flavour.placement]
            return LocalReference(inputs, local["output"], fit_recordings(graph, local), scales)
        exposed = expose_quantized(graph)
        results: dict[str, Array] = self._open(
            REFERENCE, exposed.model, lambda engine: engine.run(inputs), optimize=False
        )
        recorded = {s.site: results[s.computed] for s in exposed.segments}
        return LocalReference(inputs, results[graph.graph.output[0].name], recorded, scales)

    def _error(self, candidate: Candidate, batch: int, names: tuple[str, str]) -> Comparison:
        graph = self._subject.graphs[candidate.flavour.file]
        exact = self._probe.outputs["float"]
        if candidate.engine == REFERENCE:
            reference = self._probe.outputs[candidate.flavour.placement]
        else:
            reference = self._outputs(REFERENCE, graph, optimize=False)

        def work(engine: Engine) -> Comparison:
            outputs = run_in_batches(engine, self._probe.inputs, batch)
            self._setting.keep(candidate.flavour.file, names[1], engine, outputs)
            self.noise_floor[names[1]] = self._noise(
                engine,
                outputs,
                lambda one, other: compare_errors(exact, one, other, self._buckets).difference_db,
                batch,
            )
            compared = compare_errors(exact, reference, outputs, self._buckets)
            return measured(
                "error",
                *names,
                {"difference_db": compared.difference_db},
                engine=engine.label,
                by_timestep=compared.by_timestep,
                worst={"bucket": compared.worst_bucket},
            )

        comparison: Comparison = self._open_file(candidate.engine, candidate.flavour.file, work)
        return comparison

    def _budget(self, candidate: Candidate, evidence: Literal["budget", "single"]) -> Comparison:
        truth = self._trajectories()

        def work(engine: Engine) -> Comparison:
            names = (FLOAT, candidate.name)
            comparison, by_step = compare_with_float(
                engine, names, truth, self._held, self._section, evidence
            )
            self.trajectory["by_step"][candidate.name] = by_step
            return comparison

        comparison: Comparison = self._open_file(candidate.engine, candidate.flavour.file, work)
        return comparison

    def _mixed(self, candidate: Candidate, policy: StepPolicy) -> Comparison:
        truth = self._trajectories()

        def work(quantized: Engine, exact: Engine) -> Comparison:
            with SteppedEngine(quantized, exact, policy.choose, share=policy.describe()) as engine:
                free = compare_trajectories(engine, truth, self._held)
                self.trajectory["by_step"][f"{candidate.name} mixed"] = free.by_step
                worst = {"image_seed": free.image_seed, "policy": policy.describe()}
                return measured(
                    "mixed",
                    FLOAT,
                    candidate.name,
                    free.metrics,
                    engine=engine.label,
                    worst=worst,
                    exempt=free.exempt,
                )

        def with_float(quantized: Engine) -> Comparison:
            comparison: Comparison = self._open_file(
                candidate.engine, "float.onnx", lambda exact: work(quantized, exact)
            )
            return comparison

        comparison: Comparison = self._open_file(candidate.engine, candidate.flavour.file, with_float)
        return comparison

    def _trajectories(self) -> FloatTrajectories:
        if self._truth is None:
            raise EngineError(
                "There are no float trajectories to compare with: the float graph did not run.",
                "The exporter comparison says why; export again if float.onnx is at fault.",
            )
        return self._truth

    def _noise(
        self, engine: Engine, outputs: Array, error: ErrorMeasure | None = None, batch: int | None = None
    ) -> dict[str, Any]:
        runs, batch = self._section.noise_floor_runs, batch or self._setting.batch
        floor = measure_noise_floor(engine, self._probe.inputs, outputs, runs=runs, batch=batch, error=error)
        return dict(floor)


def _exact_comparison(file: str, found: Sequence[Difference]) -> Comparison:
    listed = [str(difference) for difference in found[:_SHOWN]]
    worst = {"first": listed[0] if listed else None, "all": listed or None}
    return measured("exact", "artifact", file, {"differences": float(len(found))}, worst=worst)
