"""The sensitivity stage, in order: load, choose the graph, rank its modules, propose, save."""

from __future__ import annotations

from dataclasses import dataclass

from gacq_deploy.artifact.artifact import CalibrationArtifact, load_artifact
from gacq_deploy.artifact.probe import Probe
from gacq_deploy.engines.catalogue import REFERENCE, engine_named
from gacq_deploy.errors import ArtifactError, UsageError, did_you_mean, quoted
from gacq_deploy.export.record import ExportRecord, load_export
from gacq_deploy.graph.files import read_graph
from gacq_deploy.parity.exact import CANONICAL, CPU
from gacq_deploy.progress import SILENT, Reporter
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.sensitivity.measure import Meter, States, count_runs, rank_modules, states_of
from gacq_deploy.sensitivity.propose import Request, Search
from gacq_deploy.sensitivity.report import SensitivityReport, save_sensitivity
from gacq_deploy.sensitivity.variants import Variants

RANKED_STATES = 64
"""Ranking runs two graphs a module and one for each of its sites, so not on every state."""
_FLAVOURS = (CANONICAL, CPU)


@dataclass(frozen=True)
class SensitivitySettings:
    """How it is measured.

    ``graph``: the exported Q/DQ graph to rank and judge; None judges every exported one and ranks the one whose
    worst bucket is lowest. ``buckets``: timestep buckets, None takes the recipe's. ``states``: probe states that
    modules are ranked on; whole graphs are measured on all. ``threads``: of ONNX Runtime; 0 lets it choose.
    """

    graph: str | None = None
    buckets: int | None = None
    states: int = RANKED_STATES
    threads: int = 0


def measure_sensitivity(
    directory: RunDirectory,
    *,
    request: Request | None = None,
    settings: SensitivitySettings | None = None,
    report: Reporter = SILENT,
) -> SensitivityReport:
    """Rank the quantized modules of an exported run by what they cost, and write ``sensitivity.json``.

    Every number is the SQNR of the model output on states of float trajectories that the artifact's probe
    holds, by timestep bucket: single steps, as parity's ``eps_sqnr_db`` measures them, on other states.

    Args:
        directory: calibrated and exported.
        request: what the worst bucket should reach; default the recipe's ``parity.budget.eps_sqnr_db``.
        settings: how it is measured.
        report: progress.

    Raises:
        ArtifactError: not calibrated or exported, stale, altered, or the artifact holds no probe.
        BackendUnavailable: ONNX Runtime is missing.
        UsageError: a graph that was not exported, or settings out of range.
        EngineError, ExportError: a variant of the graph cannot be built or run.
    """
    settings, request = settings or SensitivitySettings(), request or Request()
    recipe = directory.load_recipe()
    engine_named(REFERENCE).load()
    with directory.writing():
        artifact = load_artifact(directory.artifact)
        record = load_export(directory)
        states = states_of(
            _probe_of(artifact, directory),
            recipe.parity.buckets if settings.buckets is None else settings.buckets,
        )
        ranked = states.spread(settings.states)
        meter = Meter(recipe.runtime.batch, settings.threads, report)
        judged = _judged(_variants(directory, artifact, record, settings.graph), ranked, meter)
        _announce(judged, states, ranked, request, report)
        ranking = rank_modules(judged[0], ranked, meter)
        search = Search(judged, ranking, states, meter)
        proposal = search.propose(request, recipe.parity.budget.eps_sqnr_db)
        result = SensitivityReport(
            subject={
                "artifact_sha256": artifact.manifest_digest,
                "files": {name: entry.sha256 for name, entry in record.files.items()},
            },
            engine=meter.label,
            graph=judged[0].flavour.file,
            buckets=states.describe(),
            probe_states=len(states),
            ranked_states=len(ranked),
            engine_runs=meter.runs,
            unquantized_db=ranking.unquantized,
            quantized_db=ranking.quantized,
            modules=ranking.modules,
            proposal=proposal,
        )
        save_sensitivity(result, directory)
    return result


def _variants(
    directory: RunDirectory, artifact: CalibrationArtifact, record: ExportRecord, wanted: str | None
) -> list[Variants]:
    exported = [f for f in _FLAVOURS if f.file in record.graphs]
    chosen = [f for f in exported if wanted in (None, f.file)]
    if not chosen:
        names = ", ".join(f.file for f in exported) or "no Q/DQ graph"
        raise UsageError(
            f"Graph '{wanted}' was not exported; {directory.onnx} holds {names}.",
            f"{did_you_mean(wanted, names.split(', '))}Choose one of these, or export with `--target ort-cpu "
            "--target tensorrt`.",
        )
    graph = read_graph(directory.float_onnx)
    return [Variants(graph, artifact, flavour) for flavour in chosen]


def _judged(variants: list[Variants], states: States, meter: Meter) -> list[Variants]:
    """Return the variants to judge, the one that is furthest from float first."""
    if len(variants) == 1:
        return variants
    return sorted(variants, key=lambda v: min(meter.levels(v.without(()), states)))


def _announce(
    judged: list[Variants], states: States, ranked: States, request: Request, report: Reporter
) -> None:
    modules, runs = len(judged[0].modules), count_runs(judged[0])
    report.note(
        f"{judged[0].flavour.file}: {runs} engine runs over {len(ranked)} of {len(states)} probe states to rank "
        f"{modules} modules; then a search that leaves at most {request.limit(modules)} of them float"
    )
    report.stage("sensitivity: ranking", runs)


def _probe_of(artifact: CalibrationArtifact, directory: RunDirectory) -> Probe:
    if artifact.probe is None or "float" not in artifact.probe.outputs:
        raise ArtifactError(
            f"The artifact in {directory.artifact} holds no probe to measure on.",
            f"Run `gacq-deploy calibrate -r {quoted(directory.recipe_path)} -o {quoted(directory.root)}` again.",
        )
    return artifact.probe
