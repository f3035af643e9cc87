"""The parity stage: load what a run holds, measure, judge, save. And how to judge again without running."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from pydantic import ValidationError

from gacq_deploy import __version__
from gacq_deploy.artifact.artifact import CalibrationArtifact, load_artifact
from gacq_deploy.artifact.probe import Probe
from gacq_deploy.backends.base import Engine
from gacq_deploy.backends.processor import describe_processor
from gacq_deploy.backends.trt.library import current_device, require_device
from gacq_deploy.build_trt.manifest import EngineManifest, engines_of
from gacq_deploy.build_trt.open import is_compiled, locate_engine
from gacq_deploy.engines.catalogue import FLOAT, REFERENCE, TrtName, default_engines, engine_named
from gacq_deploy.engines.open import open_engine
from gacq_deploy.errors import ArtifactError, BackendUnavailable, GacqError, RecipeError, UsageError, quoted
from gacq_deploy.export.record import ExportRecord, load_export
from gacq_deploy.graph.files import read_graph
from gacq_deploy.parity.candidates import Candidate, candidates_of
from gacq_deploy.parity.comparisons import (
    CompiledEngine,
    EngineFactory,
    Setting,
    Subject,
    measure_comparisons,
)
from gacq_deploy.parity.probe_folder import ProbeFolder
from gacq_deploy.parity.report import ParityReport, decides_measurement, load_report, protocol_changes
from gacq_deploy.progress import SILENT, Reporter
from gacq_deploy.recipe.sections import ParitySection, Recipe
from gacq_deploy.run_directory import AnyRun, RunDirectory, as_run
from gacq_deploy.sampling.loop import model_sampler
from gacq_deploy.sampling.step_policy import StepPolicy, policy_document, resolve_policy
from gacq_deploy.storage.sealed import require_current


def check_parity(  # noqa: PLR0913 (a public function: each argument is one choice of its caller)
    directory: AnyRun,
    *,
    engines: Sequence[str] | None = None,
    threads: int = 0,
    open_with: EngineFactory = open_engine,
    allow_host_code: bool = False,
    save_polygraphy: Path | str | None = None,
    report: Reporter = SILENT,
) -> ParityReport:
    """Judge the exported graphs of a run by four kinds of evidence and write ``parity.json``.

    Args:
        directory: calibrated and exported.
        engines: engine names; None takes ``ort-cpu``, ``openvino`` where it is installed, and compiled ones
            where a GPU is.
        threads: CPU threads of the engines; 0 lets each library choose.
        open_with: opens a graph in an engine.
        allow_host_code: let a version-compatible engine run the code it carries.
        save_polygraphy: a folder for the probe's inputs and the engines' outputs in Polygraphy's formats; it is made
            whole or not at all, in the place of one that was made so before.
        report: progress.

    Raises:
        ArtifactError: not calibrated or exported, stale, altered, or the artifact holds no probe.
        BackendUnavailable: ``ort-cpu``, or an engine that was asked for, is missing, or no engine that was asked for
            can be exact on this processor; or Polygraphy is, where it is asked for.
        UsageError: no exported graph runs in the engines asked for, or the folder for Polygraphy holds something else.
    """
    directory = as_run(directory)
    recipe = directory.load_recipe()
    saved = None if save_polygraphy is None else ProbeFolder(save_polygraphy)
    with directory.writing():
        artifact = load_artifact(directory.artifact)
        record = load_export(directory)
        chosen = _choose_engines(engines, report)
        if engines is None:
            chosen += runnable_engines(directory, record, report)
        candidates, not_judged = judged_here(directory, candidates_of(record.graphs, chosen), report)
        if not candidates:
            raise _nothing_to_judge(record, chosen, not_judged)
        graphs = {name: read_graph(directory.onnx / name) for name in record.graphs}
        subject = Subject(artifact, _probe_of(artifact, directory), graphs.pop("float.onnx"), graphs)
        policy = _policy_of(recipe, artifact)
        compiled = {
            str(name): _compiled(
                directory, name, baseline=policy is not None, allow_host_code=allow_host_code
            )
            for name in chosen
            if is_compiled(name)
        }
        setting = Setting(recipe.parity, open_with, recipe.runtime.batch, threads, report, policy, compiled)
        about = _about(artifact, record) | {"processor": describe_processor()}
        if not_judged:
            about["not_judged"] = {name: reason for name, (reason, _) in not_judged.items()}
        if policy is not None:
            about["step_policy"] = policy_document(policy)
        if compiled:
            about["engines"] = {name: engine.key for name, engine in compiled.items()}
        if saved is not None:
            setting = replace(setting, keep=saved.keep)
        result = measure_comparisons(subject, candidates, setting, about)
        result.save(directory.parity_json)
        if saved is not None:
            saved.write(subject.probe, directory.onnx, batch=setting.batch, section=recipe.parity)
    return result


def rejudge(directory: RunDirectory, thresholds: ParitySection | Mapping[str, Any]) -> ParityReport:
    """Judge the numbers in ``parity.json`` under other thresholds; nothing is run and nothing written.

    Args:
        directory: holds ``parity.json``.
        thresholds: a whole section, or the keys of it that differ (``{"budget": {"image_psnr_db": 28}}``).

    Raises:
        ArtifactError: no report, or the graphs or the artifact changed since.
        RecipeError: an unknown key or a value out of range.
        UsageError: a key that decides what is measured differs: that needs a new run.
    """
    directory.require()
    old = load_report(directory.parity_json)
    hint = f"Run `gacq-deploy parity {quoted(directory.root)}` again."
    require_current(directory.parity_json, old.why_stale(directory, thresholds=False), hint)
    section = thresholds if isinstance(thresholds, ParitySection) else _merge(old.protocol, thresholds)
    for key, (before, after) in protocol_changes(old.protocol, section).items():
        if decides_measurement(key):
            raise UsageError(
                f"parity.{key} decides what is measured; it was {before}, asked for is {after}.",
                "Run `gacq-deploy parity` again with the new value in the recipe.",
            )
    return old.under(section)


def installed_engines(report: Reporter = SILENT) -> tuple[str, ...]:
    """Return the engines that are judged when none is named: ``ort-cpu`` and what else is installed.

    Raises:
        BackendUnavailable: ``ort-cpu`` is missing.
    """
    chosen = []
    for name in default_engines():
        try:
            engine_named(name).load()
        except BackendUnavailable as error:
            if name == REFERENCE:
                raise
            report.note(f"{name} is not judged: {error.hint}")
        else:
            chosen.append(name)
    return tuple(chosen)


def judged_here(
    directory: RunDirectory, candidates: Sequence[Candidate], report: Reporter = SILENT
) -> tuple[tuple[Candidate, ...], dict[str, tuple[str, str]]]:
    """Return the candidates that may run on this machine, and of the others, by name, why not and what helps."""
    judged, not_judged = [], {}
    for candidate in candidates:
        unfit = engine_named(candidate.engine).why_unfit(directory.onnx / candidate.flavour.file)
        if unfit is None:
            judged.append(candidate)
        else:
            not_judged[candidate.name] = unfit
            report.note(f"{candidate.name} is not judged: {unfit[0]}")
    return tuple(judged), not_judged


def _nothing_to_judge(
    record: ExportRecord, chosen: Sequence[str], not_judged: Mapping[str, tuple[str, str]]
) -> GacqError:
    if not_judged:
        reasons, remedies = zip(*not_judged.values(), strict=True)
        return BackendUnavailable(" ".join(reasons), " ".join(dict.fromkeys(remedies)))
    return UsageError(
        f"None of {', '.join(record.graphs)} runs in {', '.join(chosen)}.",
        f"Export again with {' '.join(f'--target {name}' for name in chosen)}.",
    )


def _choose_engines(asked: Sequence[str] | None, report: Reporter) -> tuple[str, ...]:
    if asked is None:
        return installed_engines(report)
    # the reference need not be judged, but the others are judged by it
    for name in (REFERENCE, *asked):
        if not is_compiled(name):
            engine_named(name).load()
    return tuple(dict.fromkeys(asked))


def runnable_engines(
    directory: RunDirectory, record: ExportRecord, report: Reporter = SILENT
) -> tuple[str, ...]:
    """Return the libraries whose newest engines of these graphs can run here."""
    newest: dict[str, EngineManifest] = {}
    for _, engine in engines_of(directory):
        if engine.is_int8 and not engine.why_stale(record):
            newest.setdefault(engine.inputs.library, engine)
    device = current_device() if newest else None
    runnable = tuple(sorted(name for name, engine in newest.items() if engine.runs_on(device)))
    for name in sorted(newest.keys() - set(runnable)):
        report.note(f"{name}: the engine is not judged, for there is no GPU here that it could run on")
    return runnable


def _compiled(
    directory: RunDirectory, library: TrtName, *, baseline: bool, allow_host_code: bool
) -> CompiledEngine:
    """Find the engine, and its float baseline where some steps run in it, before anything is measured."""
    located = locate_engine(directory, library)
    require_device()
    if baseline:
        locate_engine(directory, library, graph=FLOAT)

    def opened(file: str) -> Engine:
        return locate_engine(directory, library, graph=file).open(allow_host_code=allow_host_code)

    return CompiledEngine(opened, located.batches, located.folder.name)


def _probe_of(artifact: CalibrationArtifact, directory: RunDirectory) -> Probe:
    hint = (
        f"Run `gacq-deploy calibrate -r {quoted(directory.recipe_path)} -o {quoted(directory.root)}` again."
    )
    if artifact.probe is None:
        raise ArtifactError(f"The artifact in {directory.artifact} holds no probe to compare with.", hint)
    wanted = {
        "outputs": ("float", "input_quant", "output_quant"),
        "local": ("inputs", "input_quant", "output_quant"),
    }
    for part, keys in wanted.items():
        if lost := [k for k in keys if k not in getattr(artifact.probe, part)]:
            raise ArtifactError(f"The probe in {directory.artifact} lacks {part}/{lost[0]}.", hint)
    return artifact.probe


def _policy_of(recipe: Recipe, artifact: CalibrationArtifact) -> StepPolicy | None:
    """Return the recipe's choice for the trajectories that are judged, None where every step runs in INT8."""
    asked = recipe.runtime.step_policy
    if not asked:
        return None
    sampler = model_sampler(artifact.model, recipe.parity.steps)
    return resolve_policy(asked, sampler.timesteps, artifact, model_timesteps=sampler.model_timesteps)


def _about(artifact: CalibrationArtifact, record: ExportRecord) -> dict[str, Any]:
    return {
        "artifact_sha256": artifact.manifest_digest,
        "files": {name: entry.sha256 for name, entry in record.files.items()},
        "versions": {
            "gacq_deploy": __version__,
            "numpy": np.__version__,
            "onnx": onnx.__version__,
            "python": platform.python_version(),
        },
    }


def _merge(section: ParitySection, changes: Mapping[str, Any]) -> ParitySection:
    document = section.model_dump()
    for key, value in changes.items():
        old = document.get(key)
        document[key] = {**old, **value} if isinstance(old, dict) and isinstance(value, Mapping) else value
    try:
        return ParitySection.model_validate(document)
    except ValidationError as error:
        item = error.errors()[0]
        place = ".".join(str(part) for part in item["loc"])
        raise RecipeError(
            f"parity.{place}: {item['msg']} (got {item['input']!r}).",
            "`gacq-deploy recipes schema` prints every key with its meaning.",
        ) from None
