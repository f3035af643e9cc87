"""The build stage: a verified Q/DQ graph becomes an engine whose every layer is accounted for."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnx import ModelProto

from gacq_deploy.artifact.artifact import CalibrationArtifact, load_artifact
from gacq_deploy.artifact.probe import Probe
from gacq_deploy.backends.base import Engine, Feeds
from gacq_deploy.backends.batches import run_in_batches
from gacq_deploy.backends.pieces import open_frugally
from gacq_deploy.backends.trt.library import choose_backend, current_device
from gacq_deploy.backends.trt.polygraphy import require_polygraphy
from gacq_deploy.backends.trt.profiles import Shape
from gacq_deploy.build_trt import manifest
from gacq_deploy.build_trt.compiler import Limits, compile_graph, describe_library
from gacq_deploy.build_trt.coverage import check_coverage, measure_coverage
from gacq_deploy.build_trt.estimate import Estimate, estimate_build
from gacq_deploy.build_trt.float16.network import half_network, spread_rows
from gacq_deploy.build_trt.layers import document
from gacq_deploy.build_trt.manifest import DeviceRecord, EngineInputs, EngineManifest
from gacq_deploy.build_trt.options import CompileOptions
from gacq_deploy.build_trt.profiles import ShapeRequest, derive_profiles, input_dims
from gacq_deploy.engines.catalogue import CANONICAL, FLOAT
from gacq_deploy.errors import ArtifactError, GateError, UsageError, quoted
from gacq_deploy.export.record import ExportRecord, load_export
from gacq_deploy.graph.files import read_graph, weight_store, write_graph
from gacq_deploy.graph.header import read_header, size_multiple
from gacq_deploy.lint.lint import errors_in, lint_graph
from gacq_deploy.metrics.error_difference import compare_errors
from gacq_deploy.progress import SILENT, Reporter
from gacq_deploy.recipe.build import BuildSection
from gacq_deploy.recipe.sections import Recipe
from gacq_deploy.run_directory import AnyRun, RunDirectory, as_run
from gacq_deploy.samples.calibration_set import timestep_buckets
from gacq_deploy.sampling.loop import model_sampler
from gacq_deploy.sampling.step_policy import policy_document, resolve_policy
from gacq_deploy.spec import Array
from gacq_deploy.storage.digests import describe_file
from gacq_deploy.storage.files import atomic_directory, write_json
from gacq_deploy.storage.records import ListedFile

_SHOWN = 5
_CHECKED_VALUES, _LEAST_ROWS, _MOST_ROWS, _CHECKED_BATCH = 2**17, 16, 256, 8
"""The error of a few small images is mostly chance: as many rows as have so many output values, within bounds."""
_FLOAT_OUTPUT = "(float output)"
"""Beside the probe's inputs, where no input of a graph has this name: its rows are chosen together with theirs."""


@dataclass(frozen=True)
class PlannedBuild:
    """One engine that would be built, before anything is."""

    graph: str
    inputs: EngineInputs
    folder: Path
    found: EngineManifest | None
    """What lies there whole; None if it is to be built."""
    estimate: Estimate


@dataclass(frozen=True)
class BuiltEngine:
    """One engine, built now or found as it was."""

    folder: Path
    record: EngineManifest
    reused: bool


@dataclass(frozen=True)
class BuildRequest:
    """What is to be built; ``fixed`` are trtexec's shapes by ``min``, ``opt`` and ``max``."""

    section: BuildSection
    fixed: Mapping[str, Mapping[str, Shape]] = field(default_factory=dict)
    rebuild: bool = False


def plan_builds(directory: RunDirectory, request: BuildRequest) -> tuple[PlannedBuild, ...]:
    """Return what :func:`build_engines` would build: the INT8 engine, then its float baseline where one is wanted.

    Raises:
        ArtifactError: not exported, stale, or without ``int8.onnx``.
        BackendUnavailable: the library or Polygraphy is missing.
        UsageError: shapes that do not fit the graph.
        GateError: the lint finds what TensorRT refuses, crashes on or computes wrongly.
    """
    return _Stage(directory, request, SILENT).plan()


def build_engines(
    directory: AnyRun, request: BuildRequest, report: Reporter = SILENT
) -> tuple[BuiltEngine, ...]:
    """Build what is missing, and hold the INT8 engine against the coverage gate.

    An engine is addressed by everything it is made from: asked again, nothing is built. On failure the engines
    that were there stay as they were.

    Args:
        directory: calibrated and exported.
        request: the recipe's build section, or another one, and what goes beyond it.
        report: progress.

    Raises:
        ArtifactError, BackendUnavailable, UsageError: as for :func:`plan_builds`.
        GateError: lint, or too few layers compiled to INT8.
        EngineError: the parser or the builder refused, or crashed.
        ResourceError: out of time, memory or disk, or another process holds the directory.
    """
    directory = as_run(directory)
    directory.require()
    with directory.writing():
        stage = _Stage(directory, request, report)
        built = tuple(stage.build(planned) for planned in stage.plan())
    coverage = built[0].record.coverage
    assert coverage is not None, "the first engine is the quantized one"
    check_coverage(coverage, request.section.min_int8_coverage)
    return built


class _Stage:
    """One run of the stage: what several engines need is read once."""

    def __init__(self, directory: RunDirectory, request: BuildRequest, report: Reporter) -> None:
        self._directory, self._request, self._report = directory, request, report
        self._section = request.section
        self._export: ExportRecord = load_export(directory)
        if CANONICAL not in self._export.files:
            raise ArtifactError(
                f"{directory.onnx} holds no {CANONICAL}; exported were {', '.join(self._export.graphs)}.",
                f"Run `gacq-deploy export --onnx {quoted(directory.root)} --target tensorrt`.",
            )
        self._recipe: Recipe = directory.load_recipe()
        self._artifact: CalibrationArtifact = load_artifact(directory.artifact)
        if self._artifact.probe is None:
            raise ArtifactError(f"The artifact in {directory.artifact} holds no probe.", "Calibrate again.")
        self._probe: Probe = self._artifact.probe
        self._policy = self._step_policy()
        self._device = current_device()
        self._library = describe_library(choose_backend(self._section.backend))
        require_polygraphy("build-trt")

    def plan(self) -> tuple[PlannedBuild, ...]:
        """Return the engines wanted, the INT8 one first."""
        self._lint()
        wanted_baseline = self._section.fp16_baseline
        baseline = self._device is not None if wanted_baseline is None else wanted_baseline
        graphs = (CANONICAL, FLOAT) if baseline else (CANONICAL,)
        return tuple(self._planned(graph) for graph in graphs)

    def build(self, planned: PlannedBuild) -> BuiltEngine:
        """Return the engine: as it is, or built."""
        if planned.found is not None and not self._request.rebuild:
            self._report.note(f"{planned.graph}: engine {planned.inputs.key} is up to date")
            # these say how the engine is judged and used, and change nothing in it
            now = {"step_policy": self._policy, "least_coverage": self._section.min_int8_coverage}
            record = planned.found.model_copy(update=now)
            if record != planned.found:
                record.save(planned.folder)
            manifest.make_newest(self._directory, planned.folder)
            return BuiltEngine(planned.folder, record, reused=True)
        own = (
            manifest.ENGINE_FILE,
            manifest.LAYERS,
            manifest.NETWORK,
            f"{manifest.NETWORK}.data",
            manifest.MANIFEST,
        )
        with atomic_directory(planned.folder, own) as folder:
            record = self._build(planned, folder)
            record.save(folder)
        manifest.make_newest(self._directory, planned.folder)
        return BuiltEngine(planned.folder, record, reused=False)

    def _build(self, planned: PlannedBuild, folder: Path) -> EngineManifest:
        inputs = planned.inputs
        source = self._directory.onnx / planned.graph
        graph, model, half = self._network(source, inputs, folder)
        options = inputs.options
        scratch = folder / "build"
        scratch.mkdir()
        limits = Limits(self._section.timeout_s, self._section.memory_mb)
        compiled = compile_graph(graph, options, folder=scratch, limits=limits, report=self._report)
        coverage = None
        if planned.graph == CANONICAL:
            planned_modules, targets = self._artifact.plan.modules, options.compute_capabilities
            coverage = measure_coverage(model, compiled.layers, planned_modules, targets)
        compiled.engine.rename(folder / manifest.ENGINE_FILE)
        nodes = [] if coverage is None else coverage.listed()
        write_json(folder / manifest.LAYERS, {"layers": document(compiled.layers), "planned": nodes})
        shutil.rmtree(scratch)
        # everything that is left in the folder is vouched for
        files = {path.name: ListedFile(**describe_file(path)) for path in sorted(folder.iterdir())}
        return EngineManifest(
            inputs=inputs,
            files=files,
            coverage=None if coverage is None else coverage.document(),
            least_coverage=self._section.min_int8_coverage,
            half=half,
            step_policy=self._policy,
            seconds=round(compiled.seconds, 2),
            peak_mb=compiled.peak_mb,
        )

    def _network(
        self, source: Path, inputs: EngineInputs, folder: Path
    ) -> tuple[Path, ModelProto, dict[str, Any] | None]:
        """Return the graph that is compiled: the exported one, or its float16 form, which stays beside the engine."""
        if inputs.float_type == "float32":
            return source, read_graph(source), None
        self._report.stage(f"{source.name} in float16", 2)
        path = folder / manifest.NETWORK
        with weight_store(read_graph(source), folder) as store:
            network = half_network(source, self._probe.inputs, self._open, store=store)
            self._report.advance()
            write_graph(network.model, path, external_data_mb=self._recipe.export.external_data_mb)
        record = network.report.model_dump(mode="json", exclude={"max_abs"})
        record["difference_db"] = self._compare_half(source, path)
        self._report.advance()
        self._report.note(f"{source.name} in float16: {network.report.to_text()}")
        return path, read_graph(path), record

    def _compare_half(self, source: Path, half: Path) -> float | None:
        """Return how much further from the float model float16 is, in the worst timestep bucket; a gate for INT8."""
        if source.name != CANONICAL:
            return None
        outputs = self._probe.outputs["float"]
        count = min(max(_LEAST_ROWS, -(-_CHECKED_VALUES // outputs[0].size)), _MOST_ROWS)
        rows = spread_rows({**self._probe.inputs, _FLOAT_OUTPUT: outputs}, count)
        exact = rows.pop(_FLOAT_OUTPUT)
        reference, candidate = (self._outputs(path, rows) for path in (source, half))
        parity = self._recipe.parity
        buckets = timestep_buckets(rows["timestep"], parity.buckets)
        compared = compare_errors(exact, reference, candidate, buckets)
        if not compared.difference_db <= parity.error_difference_db:  # NaN fails, too
            worst = compared.by_timestep[compared.worst_bucket]
            raise GateError(
                f"In float16 {source.name} is {worst['candidate_sqnr_db']} dB from the float model in timestep bucket "
                f"{compared.worst_bucket}, in float32 {worst['reference_sqnr_db']} dB; "
                f"{parity.error_difference_db} dB of difference are allowed.",
                "Build with --float-type float32.",
            )
        return round(compared.difference_db, 4)

    def _outputs(self, path: Path, rows: Feeds) -> Array:
        with self._open(path) as engine:
            return run_in_batches(engine, rows, _CHECKED_BATCH)

    def _open(self, path: Path) -> Engine:
        threads = self._recipe.calibration.threads
        return open_frugally(path, self._probe.inputs, threads=threads, optimize=False)

    def _lint(self) -> None:
        found = errors_in(lint_graph(read_graph(self._directory.int8_onnx), target="tensorrt"))
        if found:
            listed = "\n".join(f"  {finding}" for finding in found[:_SHOWN])
            more = f"\n  ... and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            raise GateError(
                f"{CANONICAL} has {len(found)} errors that TensorRT would refuse or compute wrongly:\n{listed}{more}",
                "Export again; `gacq-deploy lint` lists every node.",
            )

    def _planned(self, graph: str) -> PlannedBuild:
        source = self._directory.onnx / graph
        inputs = EngineInputs(
            graph="int8.onnx" if graph == CANONICAL else "float.onnx",
            graph_sha256=manifest.graph_digest(self._export, graph),
            float_type=self._section.float_type,
            library=self._library.name,
            version=self._library.version,
            options=self._options(source),
            device=self._device_record(),
        )
        folder = self._directory.engines / inputs.key
        return PlannedBuild(graph, inputs, folder, _find(folder), estimate_build(source))

    def _options(self, source: Path) -> CompileOptions:
        section = self._section
        self._refuse_unsupported()
        request = ShapeRequest(section.batch, section.resolution, self._request.fixed)
        header = read_header(source)
        cache = self._directory.engines / "timing.cache"
        return CompileOptions(
            backend=self._library.name,
            profiles=derive_profiles(input_dims(header), request, size_multiple=size_multiple(header)),
            compute_capabilities=tuple(sorted(set(section.compute_capabilities), key=float)),
            workspace_mb=section.workspace_mb,
            opt_level=section.opt_level,
            refit=section.refit,
            strip=section.strip,
            hw_compat=section.hw_compat,
            version_compat=section.version_compat,
            timing_cache=str(cache) if section.timing_cache and self._library.name == "tensorrt" else None,
        )

    def _step_policy(self) -> dict[str, Any] | None:
        runtime = self._recipe.runtime
        if not runtime.step_policy:
            return None
        sampler = model_sampler(self._artifact.model, runtime.steps)
        return policy_document(
            resolve_policy(
                runtime.step_policy,
                sampler.timesteps,
                self._artifact,
                model_timesteps=sampler.model_timesteps,
            )
        )

    def _refuse_unsupported(self) -> None:
        """Say before any work what this library or this machine cannot do; all of it was tried.

        Raises:
            UsageError: naming the option.
        """
        section, library = self._section, self._library
        label = f"{library.name}-{library.version}"
        for target in section.compute_capabilities:
            if target not in library.targets:
                known = ", ".join(library.targets) or "it builds for the GPU it runs on"
                raise UsageError(
                    f"{label} has no target {target}: {known}.", "Leave --compute-capability out."
                )
        asked = {"--hw-compat": section.hw_compat, "--version-compat": section.version_compat}
        if self._device is None:  # weights can only be put back on a GPU
            asked |= {"--refit": section.refit, "--strip": section.strip}
        wrong = [option for option, given in asked.items() if given and library.name == "tensorrt-rtx"]
        if wrong:
            where = " without a GPU" if wrong[0] in ("--refit", "--strip") else ""
            raise UsageError(f"{label} cannot build with {wrong[0]}{where}.", f"Leave {wrong[0]} out.")

    def _device_record(self) -> DeviceRecord | None:
        """Return the GPU that decides what the engine is: TensorRT-RTX compiles for those asked for, or for all."""
        if self._device is None or self._library.name == "tensorrt-rtx":
            return None
        return DeviceRecord(
            name=self._device.name,
            compute_capability=self._device.compute_capability,
            driver=self._device.driver,
        )


def _find(folder: Path) -> EngineManifest | None:
    """Return the engine in ``folder``; an absent or damaged one is exactly what a build mends."""
    try:
        return manifest.read_engine(folder, hint="")
    except ArtifactError:
        return None
