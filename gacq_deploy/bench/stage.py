"""The bench stage: the exported graphs of a run directory, INT8 against its float baseline."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path

from gacq_deploy.artifact.artifact import load_artifact
from gacq_deploy.artifact.records import ModelRecord
from gacq_deploy.backends.processor import this_processor
from gacq_deploy.backends.trt.library import require_device
from gacq_deploy.bench.measure import BenchGraph, BenchSettings, Feed, measure_graphs
from gacq_deploy.bench.report import BASELINE, BenchReport, Host, IntegerShare
from gacq_deploy.build_trt.open import LocatedEngine, is_compiled, locate_baseline, locate_engine
from gacq_deploy.engines.catalogue import (
    CANONICAL,
    FLOAT,
    REFERENCE,
    default_engines,
    engine_named,
    known_engines,
)
from gacq_deploy.errors import GateError, UsageError, did_you_mean
from gacq_deploy.export.record import ExportRecord, load_export
from gacq_deploy.parity.verdict import require_not_failed
from gacq_deploy.progress import SILENT, Reporter
from gacq_deploy.run_directory import AnyRun, RunDirectory, as_run


def run_bench(
    directory: AnyRun,
    *,
    engines: Sequence[str] | None = None,
    settings: BenchSettings | None = None,
    report: Reporter = SILENT,
) -> BenchReport:
    """Measure the exported graphs and write ``bench.json``.

    ``float.onnx`` in ONNX Runtime is always measured: every INT8 graph is compared with it, and with
    ``float.onnx`` in its own engine.

    An engine of TensorRT is compared with the engine of ``float.onnx``, its baseline.

    Args:
        directory: holds artifact and exported graphs.
        engines: INT8 engines to measure; default: ONNX Runtime and, when it is installed, OpenVINO, as far as they
            may be used here.
        settings: batch sizes, threads, rounds; default: batches 1 and 8, one thread, 7 rounds.
        report: progress.

    Raises:
        ArtifactError: artifact or graphs are missing, altered or stale.
        UsageError: an engine without INT8 graph, or settings out of range.
        BackendUnavailable: an engine that was asked for is not installed, or would compute the graph wrong here.
        GateError: an engine that was asked for failed parity on this machine, or all did.
        EngineError, ResourceError: a graph does not open or run.
    """
    directory = as_run(directory)
    settings = settings or BenchSettings()
    chosen = tuple(dict.fromkeys(engines or default_engines()))
    _require_quantized(chosen)
    directory.require()
    with directory.writing():
        record = load_export(directory)
        artifact = load_artifact(directory.artifact)
        exported = [e for e in chosen if not is_compiled(e)]
        if engines:
            for engine in (e for e in exported if engine_named(e).best_graph in record.graphs):
                engine_named(engine).require_fit(directory.onnx / engine_named(engine).best_graph)
        failed = {} if settings.allow_failed else _failed_engines(directory, record, exported, bool(engines))
        graphs, baselines, absent = plan_graphs(
            directory.onnx,
            [e for e in exported if e not in failed],
            record.graphs,
            artifact.plan.integer_modules,
        )
        absent |= {
            f"{engine}/{engine_named(engine).best_graph}": error.message for engine, error in failed.items()
        }
        for library in filter(is_compiled, chosen):
            located = locate_engine(directory, library)
            if not settings.allow_failed:
                require_not_failed(directory, CANONICAL, library, key=located.folder.name)
            require_device()
            int8, baseline = _compiled(located), _compiled(locate_baseline(directory, located))
            graphs, baselines = (*graphs, int8, baseline), (*baselines, (int8.name, baseline.name))
        measured = measure_graphs(
            graphs,
            baselines,
            model_feeds(artifact.model),
            settings,
            optional=frozenset() if engines else frozenset(chosen) - {REFERENCE},
            report=report,
        )
        result = BenchReport(
            subject={
                "artifact_sha256": artifact.manifest_digest,
                "files": {name: entry.sha256 for name, entry in record.files.items()},
            },
            host=describe_host(),
            threads=settings.threads,
            repeats=settings.repeats,
            batches=settings.batches,
            candidates=measured.candidates,
            ratios=measured.ratios,
            skipped={**absent, **measured.skipped},
        )
        result.save(directory.bench_json)
    return result


def _require_quantized(chosen: Sequence[str]) -> None:
    known = [name for name, record in known_engines().items() if record.is_quantized]
    for name in chosen:
        if name not in known:
            hint = f"{did_you_mean(name, known)}Choose from: {', '.join(known)}."
            raise UsageError(f"Engine '{name}' cannot be measured.", hint)


def plan_graphs(
    folder: Path, engines: Sequence[str], available: Sequence[str], planned: tuple[str, ...]
) -> tuple[tuple[BenchGraph, ...], tuple[tuple[str, str], ...], dict[str, str]]:
    """Return (graphs to measure, pairs to compare, graphs that cannot be measured with the reason).

    Args:
        folder: where the graphs are.
        engines: INT8 engines that run ONNX graphs; without any there is no baseline either.
        available: file names that were exported.
        planned: names of the modules that are quantized.
    """
    graphs = {BASELINE: BenchGraph(REFERENCE, folder / FLOAT)} if engines else {}
    pairs: list[tuple[str, str]] = []
    absent: dict[str, str] = {}
    for engine in engines:
        layers = planned if engine_named(engine).kernels else ()
        baseline, int8 = (
            BenchGraph(engine, folder / FLOAT),
            BenchGraph(engine, folder / engine_named(engine).best_graph, layers),
        )
        if engine_named(engine).best_graph not in available:
            absent[int8.name] = f"not exported: run `gacq-deploy export --onnx` with --target {engine}"
            continue
        if unfit := engine_named(engine).why_unfit(int8.path):
            absent[int8.name] = unfit[0]
            continue
        graphs |= {baseline.name: baseline, int8.name: int8}
        pairs += [(int8.name, base) for base in dict.fromkeys((BASELINE, baseline.name))]
    return tuple(graphs.values()), tuple(pairs), absent


def _failed_engines(
    directory: RunDirectory, record: ExportRecord, engines: Sequence[str], asked: bool
) -> dict[str, GateError]:
    """Return the engines whose graph failed parity here.

    Raises:
        GateError: one that was asked for, or all of them.
    """
    failed: dict[str, GateError] = {}
    for engine in engines:
        try:
            require_not_failed(directory, engine_named(engine).best_graph, engine, export=record)
        except GateError as error:
            failed[engine] = error
    if failed and (asked or len(failed) == len(engines)):
        raise next(iter(failed.values()))
    return failed


def _compiled(located: LocatedEngine) -> BenchGraph:
    """Return an engine with its manifest's word on what is INT8."""
    inputs = located.record.inputs
    said = located.record.coverage
    integer = None
    if said is not None:
        lost = tuple(node["module"] or node["node"] for node in said["lost"])
        integer = IntegerShare(planned=said["planned"], integer=said["int8"], float_modules=lost)
    return BenchGraph(inputs.library, located.path, source=inputs.graph, integer=integer)


def model_feeds(model: ModelRecord) -> tuple[Feed, ...]:
    """Return the inputs a denoiser's graph takes, from its record; the state may have any rank."""
    timesteps = int(model.scheduler.get("num_train_timesteps", 1000))
    conditioning = [
        Feed(name, str(info["dtype"]), tuple(info["shape"]), int(info.get("num_classes") or 1))
        for name, info in model.conditioning.items()
    ]
    return (
        Feed("sample", "float32", tuple(model.sample_shape)),
        Feed("timestep", "int64" if model.call is None else model.call.timestep.dtype, (), timesteps),
        *conditioning,
    )


def describe_host() -> Host:
    """Return what a reader needs to judge the figures."""
    return Host(
        cpu=this_processor().name,
        cores=os.cpu_count() or 1,
        platform=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        load_average=round(os.getloadavg()[0], 2),
    )
