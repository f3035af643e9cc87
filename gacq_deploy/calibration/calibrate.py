"""The calibration stage, in order: samples, ranges, blocks, probe, artifact. Each step is kept once it is finished."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch

from gacq_deploy import __version__
from gacq_deploy.artifact import BlockRecord, CalibrationArtifact, load_artifact
from gacq_deploy.calibration.journal import Journal, scalar
from gacq_deploy.calibration.probe import record_probe
from gacq_deploy.calibration.reconstruction import BlockTask, ReconstructionResult, reconstruct_block
from gacq_deploy.calibration.replay import BlockData, Replay, chunk_size, full_pass
from gacq_deploy.calibration.threads import limited_threads
from gacq_deploy.calibration.weights import SampleWeights, UniformWeights, checked_weights, effective_samples
from gacq_deploy.calibration.workspace import (
    check_same_recipe,
    ensure_samples,
    finished_artifact,
    forget_run,
    work_key,
)
from gacq_deploy.ddim import make_timesteps, parse_scheduler
from gacq_deploy.errors import CalibrationError, RecipeError
from gacq_deploy.models.base import Denoiser
from gacq_deploy.models.graph import Block, ModelGraph, trace_model
from gacq_deploy.models.source import load_denoiser
from gacq_deploy.plan import resolve_plan
from gacq_deploy.progress import SILENT, Reporter
from gacq_deploy.quant.layers import ActivationQuantizer, QuantizedLayer
from gacq_deploy.quant.prepare import estimate_activation_scales, insert_quantizers
from gacq_deploy.recipe import Recipe
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.samples import CalibrationSet, load_samples
from gacq_deploy.spec import QuantPlan, Site, TensorParams
from gacq_deploy.storage import (
    Array,
    digest_array,
    lock_directory,
)


@dataclass(frozen=True)
class _Session:
    """What every step of one calibration needs."""

    recipe: Recipe
    denoiser: Denoiser
    graph: ModelGraph
    plan: QuantPlan
    samples: CalibrationSet
    journal: Journal
    weights: SampleWeights
    report: Reporter

    @property
    def chunk(self) -> int:
        return chunk_size(self.graph, self.recipe.calibration.memory_mb)


def calibrate(
    recipe: Recipe,
    directory: RunDirectory,
    *,
    fresh: bool = False,
    weights: SampleWeights | None = None,
    report: Reporter = SILENT,
) -> CalibrationArtifact:
    """Learn rounding and activation scales; resume what is unfinished, return at once what is finished.

    Args:
        recipe: sections model, samples, quantization and calibration decide the result, bit for bit.
        directory: receives ``recipe.yaml``, ``samples.safetensors``, ``work/`` and ``artifact/``.
        fresh: forget finished steps and the samples first.
        weights: one weight per training sample and block; uniform by default.
        report: progress.

    Raises:
        RecipeError: the directory holds another recipe's run, or a rule does not fit the model.
        CalibrationError: a value is not finite; finished blocks are kept.
        ArtifactError: a finished step was altered.
        ResourceError: the disk is full, or another process uses the directory.
    """
    with lock_directory(directory.root), limited_threads(recipe.calibration.threads):
        if fresh:
            forget_run(directory)
        check_same_recipe(recipe, directory)
        denoiser = load_denoiser(recipe.model)
        graph = trace_model(denoiser)
        plan = make_plan(recipe, graph)
        check_steps(recipe, denoiser)
        recipe.save(directory.recipe_path)
        samples_sha256 = ensure_samples(recipe, directory, denoiser, report)
        chosen = weights or UniformWeights()
        key = work_key(recipe, denoiser, samples_sha256, chosen)
        finished = None if fresh else finished_artifact(directory, key, report)
        if finished is not None:
            report.note("calibration is already done")
            return finished
        samples = load_samples(directory.samples_path, sha256=samples_sha256).training
        if len(samples) == 0:
            raise CalibrationError(
                "All trajectories are held out for validation.", "Raise samples.trajectories."
            )
        directory.work.mkdir(exist_ok=True)
        session = _Session(
            recipe, denoiser, graph, plan, samples, Journal(directory.work, key), chosen, report
        )
        artifact = _learn(session, directory, samples_sha256)
        artifact.save(directory.artifact)
        return load_artifact(directory.artifact)


def make_plan(recipe: Recipe, graph: ModelGraph) -> QuantPlan:
    """Resolve the recipe's rules against the model; sites that read one tensor always share a scale.

    Raises:
        RecipeError: see :func:`gacq_deploy.plan.resolve_plan`.
    """
    ties = (
        dict(graph.ties)
        if recipe.quantization.tie_concat
        else {s: str(f) for s, f in graph.shared_tensor.items()}
    )
    plan = resolve_plan(recipe, graph.sites, ties)
    if not plan.modules:
        raise RecipeError("The rules leave every layer float.", "Give at least one rule `bits`.")
    return plan


def check_steps(recipe: Recipe, denoiser: Denoiser) -> None:
    """Refuse sampler steps that the model's schedule does not have, before anything runs.

    Raises:
        UsageError: more steps than the model was trained with.
    """
    scheduler = parse_scheduler(denoiser.record.scheduler)
    for steps in (recipe.samples.steps, recipe.parity.steps, recipe.runtime.steps):
        make_timesteps(scheduler, steps)


def _learn(session: _Session, directory: RunDirectory, samples_sha256: str) -> CalibrationArtifact:
    started, cpu = time.time(), time.process_time()
    digests = {
        str(e.site): digest_array(
            session.denoiser.module.get_submodule(e.site.module).get_parameter("weight").numpy()
        )
        for e in session.plan.of_role("weight")
    }
    scales = _ensure_ranges(session)
    layers = insert_quantizers(session.denoiser.module, session.plan, scales)
    history = _ensure_blocks(session, layers, directory)
    settings = session.recipe.parity.probe
    probe = record_probe(
        session.denoiser, session.graph, settings, session.recipe.samples.steps, session.chunk, session.report
    )
    document = session.recipe.document()
    return CalibrationArtifact(
        model=session.denoiser.record,
        plan=session.plan,
        params=_collect_params(session.plan, layers),
        weight_digests=digests,
        recipe={k: document[k] for k in ("model", "samples", "quantization", "calibration")},
        samples_sha256=samples_sha256,
        history=history,
        probe=probe,
        build={
            "work_key": session.journal.key,
            "started_unix": round(started),
            "wall_s": round(time.time() - started, 1),
            "cpu_s": round(time.process_time() - cpu, 1),
            "gacq_deploy": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    )


def _ensure_ranges(session: _Session) -> dict[str, float]:
    done = session.journal.get("ranges")
    if done is None:
        chunks = -(-len(session.samples) // session.chunk)
        session.report.stage("estimate ranges", 2 * chunks)

        def run() -> Iterator[None]:
            for _ in full_pass(session.denoiser, session.samples, session.chunk):
                session.report.advance()
                yield

        scales = estimate_activation_scales(session.denoiser.module, session.plan, run)
        session.journal.put("ranges", {tie: scalar(value) for tie, value in scales.items()})
        done = session.journal.get("ranges")
        assert done is not None
    return {tie: float(value) for tie, value in done.items()}


def _ensure_blocks(
    session: _Session, layers: dict[str, QuantizedLayer], directory: RunDirectory
) -> tuple[BlockRecord, ...]:
    """Load finished blocks, learn the others in execution order."""
    blocks = session.graph.blocks
    finished = set(session.journal.steps)
    remaining = [i for i, b in enumerate(blocks) if _planned(b, layers) and _step(i, b) not in finished]
    last = remaining[-1] if remaining else -1
    replay = Replay(
        session.denoiser, session.graph, session.samples, directory.work, session.recipe.calibration.memory_mb
    )
    session.report.stage("reconstruct blocks", len(blocks))
    learned: set[int] = set()
    history = []
    # closed whatever happens: the cache would keep the space that a full disk lacks
    with closing(replay):
        for index, block in enumerate(blocks):
            data = replay.prepare(index) if index <= last else None
            if mine := _planned(block, layers):
                history.append(_ensure_block(session, index, mine, _new_quantizers(mine, learned), data))
                session.report.advance(loss=history[-1].loss_end)
            else:
                session.report.advance()
            if data is not None and index < last:
                replay.advance(index, data)
    return tuple(history)


def _ensure_block(
    session: _Session,
    index: int,
    layers: dict[str, QuantizedLayer],
    learnable: tuple[ActivationQuantizer, ...],
    data: BlockData | None,
) -> BlockRecord:
    """Load one block's step, or learn and save it; either way the layers take the saved values."""
    block = session.graph.blocks[index]
    step = session.journal.get(_step(index, block))
    if step is None:
        assert data is not None, f"{block.name} is not learned, but its data was not prepared"
        weights = checked_weights(session.weights, block.name, session.samples)
        settings = session.recipe.calibration
        seed = settings.seed * 100_003 + index
        task = BlockTask(block.name, layers, learnable, data, weights, seed)
        result = reconstruct_block(task, settings.reconstruction)
        step = _pack(layers, result, effective_samples(weights))
        session.journal.put(_step(index, block), step)
    return _unpack(block, layers, step)


def _step(index: int, block: Block) -> str:
    return f"block-{index:03d}-{block.name}"


def _planned(block: Block, layers: dict[str, QuantizedLayer]) -> dict[str, QuantizedLayer]:
    names = {s.module for s in block.sites}
    return {name: layer for name, layer in layers.items() if name in names}


def _new_quantizers(layers: dict[str, QuantizedLayer], learned: set[int]) -> tuple[ActivationQuantizer, ...]:
    """Return the input quantizers first met in this block: a tie across blocks is learned in its first one."""
    fresh = {id(layer.input_quantizer): layer.input_quantizer for layer in layers.values()}
    chosen = tuple(q for key, q in fresh.items() if key not in learned)
    learned.update(fresh)
    return chosen


def _pack(
    layers: dict[str, QuantizedLayer], result: ReconstructionResult, effective: float
) -> dict[str, Array]:
    step: dict[str, Array] = {
        "loss_start": scalar(result.loss_start),
        "loss_end": scalar(result.loss_end),
        "kept": scalar(float(result.kept)),
        "effective_samples": scalar(effective),
    }
    for name, layer in layers.items():
        step[f"{name}:weight.codes"] = layer.codes.numpy()
        step[f"{name}:input.scale"] = scalar(float(layer.input_quantizer.scale))
    return step


def _unpack(block: Block, layers: dict[str, QuantizedLayer], step: dict[str, Array]) -> BlockRecord:
    for name, layer in layers.items():
        layer.codes = torch.from_numpy(step[f"{name}:weight.codes"])
        layer.input_quantizer.set_scale(float(step[f"{name}:input.scale"]))
    return BlockRecord(
        name=block.name,
        sites=len(layers),
        loss_start=float(step["loss_start"]),
        loss_end=float(step["loss_end"]),
        kept=bool(step["kept"]),
        effective_samples=float(step["effective_samples"]),
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
            params[entry.site] = TensorParams(layer.weight_scale.numpy(), layer.codes.numpy())
        else:
            quantizer = layer.input_quantizer if entry.site.role == "input" else layer.output_quantizer
            assert quantizer is not None
            params[entry.site] = TensorParams(np.array(float(quantizer.scale), np.float32))
    return params
