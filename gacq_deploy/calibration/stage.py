"""The calibration stage: samples, smoothing, ranges, blocks, polish, probe, artifact. A finished step is kept."""

from __future__ import annotations

import platform
import resource
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from gacq_deploy import __version__
from gacq_deploy.artifact.artifact import CalibrationArtifact, RetrainedParameter, load_artifact
from gacq_deploy.artifact.diagnostics import Diagnostics
from gacq_deploy.artifact.smoothing import InputSmoothing
from gacq_deploy.calibration.blocks import BlocksOutcome, Rounding, ensure_blocks
from gacq_deploy.calibration.budget import activation_mb, settled
from gacq_deploy.calibration.checkpoint import Checkpoint
from gacq_deploy.calibration.cost.estimate import CalibrationEstimate, estimate_planned
from gacq_deploy.calibration.limits import too_large_to_learn
from gacq_deploy.calibration.planning import check_samples, checked_plan
from gacq_deploy.calibration.polish import PolishOutcome, ensure_polish
from gacq_deploy.calibration.probe import record_probe
from gacq_deploy.calibration.ranges import ensure_ranges
from gacq_deploy.calibration.resume import (
    blocks_key,
    finished_artifact,
    forget_run,
    save_recipe,
    work_key,
)
from gacq_deploy.calibration.same_recipe import as_begun, check_same_recipe, refuse_device
from gacq_deploy.calibration.session import Session
from gacq_deploy.calibration.smoothing import ensure_smoothing
from gacq_deploy.calibration.stage_gains import StageGains
from gacq_deploy.calibration.weighting.sample_weights import SampleWeights
from gacq_deploy.calibration.weighting.weighting import Split, Weighting
from gacq_deploy.errors import RecipeError
from gacq_deploy.models.devices import computing_on, device_class, device_facts, find_device
from gacq_deploy.models.given import with_pipeline
from gacq_deploy.models.lora import text_parts
from gacq_deploy.models.placement import to_host
from gacq_deploy.models.source import Source
from gacq_deploy.models.trajectories.collect import find_model, open_trajectories
from gacq_deploy.processes.group import ALONE, Group
from gacq_deploy.progress import SILENT, Reporter
from gacq_deploy.quant.layers import QuantizedLayer
from gacq_deploy.quant.prepare import insert_quantizers
from gacq_deploy.quant.smoothing import Smoothing
from gacq_deploy.quant.trainable import retrained_norms
from gacq_deploy.recipe.sections import Recipe
from gacq_deploy.run_directory import AnyRun, RunDirectory, as_run
from gacq_deploy.samples.calibration_set import load_samples
from gacq_deploy.spec import QuantPlan, Site, TensorParams
from gacq_deploy.storage.digests import digest_array
from gacq_deploy.storage.room import check_disk

_DISK_OFF_BY = 3
"""Disk is estimated within this factor."""
_FORESEE_S = 0.03
"""Seconds for which a kind of call is timed where work follows at once; `--dry-run` takes longer."""


def calibrate(  # noqa: PLR0913 (a public function: each argument is one choice of its caller)
    recipe: Recipe,
    directory: AnyRun,
    *,
    model: Any = None,
    source: Source | None = None,
    fresh: bool = False,
    weights: SampleWeights | None = None,
    foresee: Callable[[CalibrationEstimate], None] | None = None,
    report: Reporter = SILENT,
    group: Group = ALONE,
) -> CalibrationArtifact:
    """Learn sample weights, rounding, scales and biases; resume what is unfinished, return at once what is finished.

    Args:
        recipe: sections model, samples, quantization and calibration decide the result, bit for bit.
        directory: receives ``recipe.yaml``, ``samples.safetensors``, ``work/`` and ``artifact/``.
        model: a loaded pipeline of diffusers, instead of what the recipe names. If its denoiser's weights are those of
            the folder or revision it came from, that is recorded; else its components are saved into the run, so that
            resuming and exporting work in another process. ``report`` says which.
        source: the recipe's model, where the caller has found it already.
        fresh: forget finished steps and the samples first.
        weights: one weight per training sample and stage, instead of those the recipe's mode learns.
        foresee: is told before the first sample what all will cost, unless the run is finished already; the report then
            knows the stages, and a disk that is too small is refused.
        report: progress.
        group: processes that collect samples together; this is the first of them, and the others are to call
            :func:`gacq_deploy.models.trajectories.worker.help_calibrate`.

    Raises:
        RecipeError: the directory holds another recipe's run, or a rule does not fit the model.
        UsageError: ``model`` is no pipeline, or has adapters that are not fused.
        ModelError: the model is not whole or not supported (before anything is loaded or written).
        CalibrationError: a value is not finite; finished blocks are kept.
        ArtifactError: a finished step was altered.
        BackendUnavailable: the recipe's device is not here (before anything is loaded or written).
        ResourceError: the disk is full, or another process uses the directory.
    """
    directory = as_run(directory)
    device = find_device(recipe.calibration.device)
    if model is not None:
        recipe = with_pipeline(recipe, model, directory, report)
    source = find_model(recipe, source)
    for name in text_parts(recipe.model.loras, source.pipeline_class):
        report.note(
            f"LoRA {name} changes text encoders too: load it into those of the pipeline you deploy with"
        )
    with directory.writing(new=True), computing_on(device, recipe.calibration.threads):
        if not fresh:
            check_same_recipe(recipe, directory)
        recipe = _settled(recipe, directory, device, fresh=fresh)
        trajectories = open_trajectories(source, recipe, directory, group, device)
        denoiser = trajectories.denoiser
        graph, plan = checked_plan(recipe, denoiser, report)
        # it fits the model; a run that is interrupted from here on has to tell whose it was
        if fresh:
            forget_run(directory)
        save_recipe(recipe, directory, report)
        if foresee is not None and (fresh or not (directory.artifact / "manifest.json").is_file()):
            estimate = estimate_planned(
                recipe, denoiser, graph, plan, branches=trajectories.branches, enough_s=_FORESEE_S
            )
            # what a run that goes on has written lies there already
            check_disk(
                estimate.disk_mb * 2**20 / _DISK_OFF_BY - _written(directory),
                directory.root,
                "this calibration",
                otherwise=", choose another directory with -o, or take fewer samples (samples.trajectories)",
            )
            report.plan(estimate.stages)
            foresee(estimate)
        samples_sha256 = trajectories.ensure_samples(report)
        # the others have no more to do: this process goes on alone
        group.broadcast(None)
        group.close()
        key = work_key(recipe, denoiser, samples_sha256, weights)
        finished = None if fresh else finished_artifact(directory, key, report)
        if finished is not None:
            report.note("calibration is already done")
            return finished
        if recipe.calibration.device_class != device_class(device):
            refuse_device(directory, recipe.calibration.device_class, device_class(device))
        samples = load_samples(directory.samples_path, sha256=samples_sha256)
        check_samples(samples, denoiser, where=str(directory.samples_path))
        split = Split(samples, recipe.calibration.weighting.groups)
        memory_mb = activation_mb(recipe.calibration, denoiser, plan)
        too_large = too_large_to_learn(denoiser, graph, plan, memory_mb)
        weighting = Weighting(recipe.calibration, split, weights, too_large)
        session = Session(recipe, denoiser, graph, plan, split, weighting, trajectories, report, memory_mb)
        blocks = Checkpoint(directory.work, blocks_key(recipe, denoiser, samples_sha256, weights))
        artifact = _learn(session, blocks, Checkpoint(directory.work / "polish", key), samples_sha256)
        artifact.save(directory.artifact)
        # what the caller gets is what every later stage will read, verified
        return load_artifact(directory.artifact)


def _settled(recipe: Recipe, directory: RunDirectory, device: torch.device, *, fresh: bool) -> Recipe:
    """Return the recipe with the kind of device on which the run computes, as the run remembers it.

    Where the device is left open, a finished run keeps its own: on any machine there is nothing to compute.

    Raises:
        RecipeError: an unfinished run began on another kind of device.
    """
    if not fresh and directory.recipe_path.is_file():
        recipe = as_begun(recipe, directory.load_recipe())
    recipe = settled(recipe, device)
    began, kind = recipe.calibration.device_class, device_class(device)
    if began != kind and not (directory.artifact / "manifest.json").is_file():
        refuse_device(directory, began, kind)
    return recipe


def _written(directory: RunDirectory) -> int:
    """Return the bytes of the samples and finished steps that lie in the run."""
    files = (directory.samples_path, *directory.work.rglob("*"))
    return sum(path.stat().st_size for path in files if path.is_file())


def _learn(
    session: Session, blocks: Checkpoint, polish: Checkpoint, samples_sha256: str
) -> CalibrationArtifact:
    started, cpu = time.time(), time.process_time()
    blocks.folder.mkdir(exist_ok=True)
    polish.folder.mkdir(exist_ok=True)
    module = session.denoiser.module
    # first: wrapped layers and norms have other names, and the polish changes values
    sources = {name: digest_array(to_host(value.detach())) for name, value in module.named_parameters()}
    errors = StageGains(session)
    smoothing = ensure_smoothing(session, blocks)
    scales = ensure_ranges(session, blocks, smoothing)
    layers = insert_quantizers(module, session.plan, scales, smoothing)
    errors.measure("nearest")
    nearest = Rounding(layers)
    learned = ensure_blocks(session, blocks, layers, blocks.folder)
    if learned.history and not errors.measure("reconstruction"):
        nearest.restore()
        learned = learned.undone()
    polished = ensure_polish(session, polish, layers, partial(errors.measure, "polish"))
    if polished is not None and not polished.record.kept:
        errors.undo("polish")
    probe = record_probe(
        session.trajectories,
        session.graph,
        session.recipe.parity.probe,
        session.chunk,
        session.report,
    )
    digests = {str(e.site): sources[f"{e.site.module}.weight"] for e in session.plan.of_role("weight")}
    smoothed = {Site(name, "input"): _recorded(how) for name, how in smoothing.items()}
    return CalibrationArtifact(
        model=session.denoiser.record,
        plan=session.plan,
        params=_collect_params(session.plan, layers),
        weight_digests=digests,
        recipe=session.recipe.decisive(),
        samples_sha256=samples_sha256,
        history=learned.history,
        probe=probe,
        build={
            "work_key": polish.key,
            **_build_facts(started, cpu),
            **device_facts(session.denoiser.device),
            "stages": errors.documents(),
        },
        parameters=_retrained(module, polished, sources),
        smoothing=smoothed,
        polish=None if polished is None else polished.record,
        diagnostics=_diagnostics(session, learned, polished, errors),
    )


def _build_facts(started: float, cpu: float) -> dict[str, Any]:
    return {
        "started_unix": round(started),
        "wall_s": round(time.time() - started, 1),
        "cpu_s": round(time.process_time() - cpu, 1),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "gacq_deploy": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _recorded(smoothing: Smoothing) -> InputSmoothing:
    return InputSmoothing(to_host(smoothing.factor), smoothing.alpha, smoothing.norm)


def _retrained(
    module: nn.Module, polished: PolishOutcome | None, sources: Mapping[str, str]
) -> dict[str, RetrainedParameter]:
    """Return what differs from the float model: a layer that never runs has no constant to replace in the graph."""
    learned = {
        f"{name}.{kind}": to_host(value.detach())
        for name, norm in retrained_norms(module).items()
        for kind, value in norm.affine.items()
    }
    if polished is not None:
        learned |= {k: to_host(v) for k, v in polished.parameters.items()}
    changed = {name: value for name, value in learned.items() if digest_array(value) != sources[name]}
    return {name: RetrainedParameter(value, sources[name]) for name, value in changed.items()}


def _diagnostics(
    session: Session, blocks: BlocksOutcome, polished: PolishOutcome | None, errors: StageGains
) -> Diagnostics:
    split = session.split
    return Diagnostics(
        timesteps=split.training_timesteps,
        trajectory=split.samples.trajectory[split.training],
        groups=split.buckets[split.training],
        stages=(*blocks.stages, *(() if polished is None else (polished.stage,))),
        error_timesteps=errors.timesteps,
        error_sqnr_db=errors.sqnr_db,
    )


def _collect_params(plan: QuantPlan, layers: dict[str, QuantizedLayer]) -> dict[Site, TensorParams]:
    params: dict[Site, TensorParams] = {}
    for entry in plan:
        layer = layers.get(entry.site.module)
        if layer is None:
            raise RecipeError(
                f"Site '{entry.site}' is planned but its module's weight is float.",
                "Quantize both or neither.",
            )
        if entry.site.role == "weight":
            params[entry.site] = TensorParams(to_host(layer.weight_scale), to_host(layer.codes))
        else:
            quantizer = layer.input_quantizer if entry.site.role == "input" else layer.output_quantizer
            assert quantizer is not None, f"{entry.site} is planned without a quantizer"
            params[entry.site] = TensorParams(np.array(float(quantizer.scale), np.float32))
    return params
