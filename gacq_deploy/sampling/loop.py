"""How is an image made with an engine? Noise, a sampler's steps, one engine call each; no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from gacq_deploy.artifact.call import SAMPLE, TIMESTEP, TimestepRecord
from gacq_deploy.artifact.records import ModelRecord
from gacq_deploy.backends.base import Engine
from gacq_deploy.backends.batches import fixed_batch, predict
from gacq_deploy.engines.attributes import import_attribute
from gacq_deploy.errors import EngineError, ModelError, UsageError
from gacq_deploy.progress import SILENT, Reporter
from gacq_deploy.samples.conditioning import Conditions
from gacq_deploy.sampling.ddim import SAME_PROCESS, DdimSampler, check_seeds, initial_noise
from gacq_deploy.sampling.flow import FLOW_CLASS, FlowSampler
from gacq_deploy.sampling.timesteps import Keys, ModelTimesteps
from gacq_deploy.spec import Array, Float32

Observer = Callable[[int, Float32, Float32], None]
"""Gets of every call: the step's index, the model's input ``[N, ...]``, its raw output ``[branches * N, ...]``."""
_DIFFUSERS = "gacq_deploy.models.diffusers_scheduler:DiffusersSampler"
"""Behind a string, so that the samplers in numpy need no torch."""


class SamplerRun(Protocol):
    """One batch of trajectories on its way through a sampler."""

    def start(self, noise: Float32) -> Float32:
        """Scale unit noise ``[N, ...]`` to the first state."""

    def model_input(self, sample: Float32, index: int) -> Float32:
        """Return what the network sees of the state at ``timesteps[index]``."""

    def step(self, output: Float32, index: int, sample: Float32) -> Float32:
        """Return the next state."""


class Sampler(Protocol):
    """A noise schedule with its timesteps."""

    @property
    def timesteps(self) -> Keys:
        """Timesteps ``[S]`` of the engine calls on the training scale, rounded, noisiest first."""

    @property
    def model_timesteps(self) -> ModelTimesteps:
        """What the network is fed of them, ``[S]`` int64 or float32."""

    def begin(self, seeds: Sequence[int]) -> SamplerRun:
        """Start a batch; every random number of row i comes from ``seeds[i]``."""


def native_sampler(config: Mapping[str, Any]) -> str:
    """Return the sampler that a model's scheduler configuration stands for.

    ``ddim`` for every process that DDIM can follow, ``flow`` for a rectified flow, both in numpy; otherwise the
    scheduler's own class of diffusers.
    """
    kind = str(config.get("_class_name", "DDIMScheduler"))
    if kind == FLOW_CLASS:
        return "flow"
    return "ddim" if kind in SAME_PROCESS and not config.get("use_flow_sigmas") else kind


def model_sampler(record: ModelRecord, steps: int, *, name: str | None = None, eta: float = 0.0) -> Sampler:
    """Return the sampler called ``name`` for a recorded model.

    Args:
        record: says the scheduler's configuration, the noise schedule, and how the network takes timesteps.
        steps: sampler steps.
        name: ``ddim`` or ``flow`` (numpy), or a scheduler class of diffusers, for instance
            ``EulerDiscreteScheduler``; None takes the model's own, see :func:`native_sampler`.
        eta: noise of ``ddim``; other schedulers bring their own.

    Raises:
        UsageError: unknown name, ``steps`` or ``eta`` out of range.
        ModelError: the configuration does not suit this sampler, or the network does not take its timesteps.
        BackendUnavailable: diffusers is not installed.
    """
    config = record.scheduler
    chosen = native_sampler(config) if name is None else name
    timestep = record.call.timestep if record.call is not None else TimestepRecord()
    taken: Any = {"timestep_dtype": timestep.dtype, "timestep_scale": timestep.scale}
    if chosen == "ddim":
        return DdimSampler.from_config(config, steps, eta, alphas=record.alphas_cumprod, **taken)
    if eta != 0.0:
        raise UsageError(f"eta is a setting of ddim, not of {chosen}.", "Leave --eta out.")
    if chosen == "flow":
        return FlowSampler.from_config(config, steps, **taken)
    adapter = import_attribute(
        _DIFFUSERS, what=f"Scheduler '{chosen}'", hint="pip install 'gacq-deploy[calibrate]'"
    )
    try:
        sampler: Sampler = adapter.from_config(config, steps, chosen, **taken)
    except (UsageError, ModelError) as error:
        if name is not None:
            raise
        raise type(error)(
            f"The model's own scheduler, {chosen}, cannot be followed. {error.message}",
            "Save the model with a scheduler of its process that works; `run --scheduler NAME` tries one.",
        ) from error
    return sampler


def build_conditioning(
    record: ModelRecord, count: int, labels: Sequence[int] | None = None
) -> dict[str, Array]:
    """Return the conditioning inputs of ``count`` images, name -> ``[count]``.

    Args:
        record: says which inputs the model has.
        count: number of images.
        labels: class labels, repeated in turn over the images; None takes every class in turn.

    Raises:
        UsageError: a label out of range, labels for a model without classes, or an input that is no label.
    """
    built: dict[str, Array] = {}
    for name, info in record.conditioning.items():
        if not info.get("num_classes") or tuple(info.get("shape", ())) != ():
            raise UsageError(
                f"Input '{name}' of {record.source} is not a class label.", "Pass its values yourself."
            )
        classes = int(info["num_classes"])
        chosen = list(range(classes)) if labels is None else list(labels)
        wrong = [label for label in chosen if not 0 <= label < classes]
        if wrong or not chosen:
            what = f"Class label {wrong[0]} is out of range" if wrong else "No class label was given"
            raise UsageError(f"{what}: {record.source} has {classes} classes.", f"Choose 0 to {classes - 1}.")
        built[name] = np.resize(np.array(chosen, dtype=info.get("dtype", "int64")), count)
    if labels is not None and not built:
        raise UsageError(f"{record.source} takes no class labels.", "Leave the labels out.")
    return built


def generate(  # noqa: PLR0913 (all keyword-only, each one a thing the caller owns)
    engine: Engine,
    sampler: Sampler,
    *,
    shape: tuple[int, ...],
    conditions: Conditions,
    seeds: Sequence[int],
    batch: int = 16,
    report: Reporter = SILENT,
    observe: Observer | None = None,
) -> Float32:
    """Sample one image, or latent, per seed.

    An image depends on its seed and conditions alone, never on its batch: noise is drawn per seed, and a
    batch of one row is run as two, because kernels sum in another order at one row and INT8 rounding
    amplifies that. With guidance a call has two rows an image, those of the negative conditions first.

    Args:
        engine: takes ``sample`` [N, *shape], ``timestep`` [N] and the conditioning by name.
        sampler: the noise schedule.
        shape: of one state, of any rank: ``(C, H, W)``, or ``(L, C)`` of packed latents.
        conditions: one row per image; empty for a model that takes none.
        seeds: one per image.
        batch: images run together; the last batch may be smaller.
        report: advances once an engine call.
        observe: is called once an engine call, batch after batch.

    Returns:
        Final states ``[len(seeds), *shape]`` float32, in the model's own range.

    Raises:
        UsageError: no seeds or one out of range, batch below 1, or conditions that do not fit the engine.
        EngineError: the engine failed, or its output is not finite (names step, timestep and seed).
    """
    limit = fixed_batch(engine)
    _check_request(engine, sampler, shape, conditions, seeds, batch)
    size = min(batch, limit) if limit else batch
    starts = range(0, len(seeds), size)
    report.stage("denoise", len(starts) * len(sampler.timesteps))
    done = []
    for first in starts:
        rows = slice(first, first + size)
        part = conditions.rows(rows)
        done.append(_generate_batch(engine, sampler, shape, part, seeds[rows], report, observe))
    return np.concatenate(done)


def _generate_batch(  # noqa: PLR0913, PLR0917 (generate's, one by one)
    engine: Engine,
    sampler: Sampler,
    shape: tuple[int, ...],
    conditions: Conditions,
    seeds: Sequence[int],
    report: Reporter,
    observe: Observer | None,
) -> Float32:
    run = sampler.begin(seeds)
    state = run.start(initial_noise(seeds, shape))
    fixed, branches = conditions.feeds(), conditions.branches
    for index, timestep in enumerate(sampler.model_timesteps):
        seen = run.model_input(state, index)
        feeds: dict[str, Array] = {
            SAMPLE: seen if branches == 1 else np.concatenate([seen] * branches),
            TIMESTEP: np.full(branches * len(seeds), timestep),
            **fixed,
        }
        predicted = predict(engine, feeds)
        _check_finite(predicted, engine, sampler, index, seeds)
        if observe is not None:
            observe(index, seen, predicted)
        state = run.step(conditions.guide(predicted), index, state)
        report.advance()
    return state


def _check_request(
    engine: Engine,
    sampler: Sampler,
    shape: tuple[int, ...],
    conditions: Conditions,
    seeds: Sequence[int],
    batch: int,
) -> None:
    if not seeds or batch < 1:
        raise UsageError(
            f"{len(seeds)} images in batches of {batch}.", "Ask for at least one image, batch 1 or more."
        )
    check_seeds(seeds)
    wanted = {i.name: i for i in engine.inputs}
    given = {SAMPLE, TIMESTEP, *conditions.positive}
    if set(wanted) != given:
        raise UsageError(
            f"{engine.label} takes {sorted(wanted)}, sampling would give {sorted(given)}.",
            "Give the conditioning that the model was exported with.",
        )
    dtype = sampler.model_timesteps.dtype.name
    if wanted[TIMESTEP].dtype != dtype:
        raise UsageError(
            f"{engine.label} takes {wanted[TIMESTEP].dtype} timesteps, the sampler gives {dtype}.",
            "Take the sampler that the model was calibrated for: leave --scheduler out.",
        )
    declared = wanted[SAMPLE].shape[1:]
    if len(declared) != len(shape) or any(d not in (None, s) for d, s in zip(declared, shape, strict=False)):
        raise UsageError(
            f"Image shape {list(shape)} does not fit the engine's {list(declared)}.", "Match the model."
        )
    if conditions.positive and len(conditions) != len(seeds):
        raise UsageError(
            f"Conditioning has {len(conditions)} rows for {len(seeds)} images.", "Give one each."
        )


def _check_finite(
    predicted: Float32, engine: Engine, sampler: Sampler, index: int, seeds: Sequence[int]
) -> None:
    bad = ~np.isfinite(predicted).reshape(len(predicted), -1).all(axis=1)
    if bool(bad.any()):
        # rows of a call: all images of the negative branch, then all of the positive one
        row = int(np.flatnonzero(bad)[0])
        raise EngineError(
            f"{engine.label}: the output is not finite at step {index + 1} of {len(sampler.timesteps)} "
            f"(timestep {int(sampler.timesteps[index])}), seed {seeds[row % len(seeds)]}.",
            "Run `gacq-deploy parity` on the run directory: it names the first layer that departs.",
        )
