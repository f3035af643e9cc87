"""How is an image made with an engine? Noise, a sampler's steps, one engine call each; no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gacq_deploy.artifact import ModelRecord
from gacq_deploy.backends import import_attribute
from gacq_deploy.backends.base import Array, Engine, Feeds
from gacq_deploy.ddim import DdimSampler, check_seeds, initial_noise
from gacq_deploy.errors import EngineError, UsageError
from gacq_deploy.progress import SILENT, Reporter

__all__ = [
    "DdimSampler",
    "Sampler",
    "SamplerRun",
    "build_conditioning",
    "generate",
    "initial_noise",
    "open_sampler",
    "predict",
]

Floats = NDArray[np.float32]
SAMPLE, TIMESTEP = "sample", "timestep"
_DIFFUSERS = "gacq_deploy.models.schedulers:DiffusersSampler"
"""Behind a string, so that sampling with DDIM needs no torch."""


class SamplerRun(Protocol):
    """One batch of trajectories on its way through a sampler."""

    def start(self, noise: Floats) -> Floats:
        """Scale unit noise ``[N, ...]`` to the first state."""

    def model_input(self, sample: Floats, index: int) -> Floats:
        """Return what the network sees of the state at ``timesteps[index]``."""

    def step(self, output: Floats, index: int, sample: Floats) -> Floats:
        """Return the next state."""


class Sampler(Protocol):
    """A noise schedule with its timesteps."""

    @property
    def timesteps(self) -> NDArray[np.int64]:
        """Timesteps ``[S]`` of the engine calls, noisiest first."""

    def begin(self, seeds: Sequence[int]) -> SamplerRun:
        """Start a batch; every random number of row i comes from ``seeds[i]``."""


def open_sampler(config: Mapping[str, Any], steps: int, *, name: str = "ddim", eta: float = 0.0) -> Sampler:
    """Return the sampler called ``name``: ``ddim`` (numpy) or a scheduler class of diffusers.

    Args:
        config: the model's scheduler configuration.
        steps: sampler steps.
        name: ``ddim``, or for instance ``EulerDiscreteScheduler``.
        eta: noise of ``ddim``; other schedulers bring their own.

    Raises:
        UsageError: unknown name, ``steps`` or ``eta`` out of range.
        ModelError: the configuration does not suit this sampler.
        BackendUnavailable: diffusers is not installed.
    """
    if name == "ddim":
        return DdimSampler.from_config(config, steps, eta)
    if eta != 0.0:
        raise UsageError(f"eta is a setting of ddim, not of {name}.", "Leave --eta out.")
    adapter = import_attribute(
        _DIFFUSERS, what=f"Scheduler '{name}'", hint="pip install 'gacq-deploy[calibrate]'"
    )
    sampler: Sampler = adapter.from_config(config, steps, name)
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
    conditioning: Mapping[str, Array],
    seeds: Sequence[int],
    batch: int = 16,
    report: Reporter = SILENT,
) -> Floats:
    """Sample one image per seed.

    An image depends on its seed and conditioning alone, never on its batch: noise is drawn per seed, and a
    batch of one row is run as two, because kernels sum in another order at one row and INT8 rounding
    amplifies that.

    Args:
        engine: takes ``sample`` [N, *shape], ``timestep`` [N] int64 and the conditioning by name.
        sampler: the noise schedule.
        shape: of one image, ``(C, H, W)``.
        conditioning: input name -> ``[len(seeds), ...]``.
        seeds: one per image.
        batch: images run together; the last batch may be smaller.
        report: advances once an engine call.

    Returns:
        Final states ``[len(seeds), *shape]`` float32, in the model's own range.

    Raises:
        UsageError: no seeds or one out of range, batch below 1, or conditioning that does not fit the engine.
        EngineError: the engine failed, or its output is not finite (names step, timestep and seed).
    """
    limit = _fixed_batch(engine)
    _check_request(engine, shape, conditioning, seeds, batch)
    size = min(batch, limit) if limit else batch
    starts = range(0, len(seeds), size)
    report.stage("denoise", len(starts) * len(sampler.timesteps))
    done = []
    for first in starts:
        rows = slice(first, first + size)
        condition = {name: value[rows] for name, value in conditioning.items()}
        done.append(_generate_batch(engine, sampler, shape, condition, seeds[rows], report))
    return np.concatenate(done)


def _generate_batch(
    engine: Engine,
    sampler: Sampler,
    shape: tuple[int, ...],
    condition: Mapping[str, Array],
    seeds: Sequence[int],
    report: Reporter,
) -> Floats:
    run = sampler.begin(seeds)
    state = run.start(initial_noise(seeds, shape))
    rows = len(seeds)
    for index, timestep in enumerate(sampler.timesteps):
        feeds: dict[str, Array] = {
            SAMPLE: run.model_input(state, index),
            TIMESTEP: np.full(rows, timestep, np.int64),
            **condition,
        }
        predicted = predict(engine, feeds)
        _check_finite(predicted, engine, sampler, index, seeds)
        state = run.step(predicted, index, state)
        report.advance()
    return state


def predict(engine: Engine, feeds: Feeds) -> Floats:
    """Run one step of any number of rows: split where the engine takes no more, and never one row alone.

    Args:
        engine: its first output is the prediction.
        feeds: its inputs by name, each ``[N, ...]``, N at least 1.

    Returns:
        The prediction ``[N, ...]``.

    Raises:
        EngineError: the feeds do not fit, or the engine failed.
        ResourceError: out of memory.
    """
    rows = len(feeds[SAMPLE])
    fixed = _fixed_batch(engine)
    limit = fixed or engine.max_rows or rows
    parts = []
    for first in range(0, rows, limit):
        part = {name: value[first : first + limit] for name, value in feeds.items()}
        size = len(part[SAMPLE])
        padded = fixed or max(size, min(2, engine.max_rows or 2))
        parts.append(engine.run(_pad(part, padded))[engine.outputs[0].name][:size])
    return np.concatenate(parts)


def _pad(feeds: Feeds, rows: int) -> dict[str, Array]:
    """Repeat the last row until every input has ``rows`` rows."""
    return {k: np.concatenate([v, np.repeat(v[-1:], rows - len(v), axis=0)]) for k, v in feeds.items()}


def _fixed_batch(engine: Engine) -> int | None:
    shapes = [i.shape for i in engine.inputs if i.name == SAMPLE]
    return shapes[0][0] if shapes and shapes[0] else None


def _check_request(
    engine: Engine,
    shape: tuple[int, ...],
    conditioning: Mapping[str, Array],
    seeds: Sequence[int],
    batch: int,
) -> None:
    if not seeds or batch < 1:
        raise UsageError(
            f"{len(seeds)} images in batches of {batch}.", "Ask for at least one image, batch 1 or more."
        )
    check_seeds(seeds)
    wanted = {i.name: i for i in engine.inputs}
    given = {SAMPLE, TIMESTEP, *conditioning}
    if set(wanted) != given:
        raise UsageError(
            f"{engine.label} takes {sorted(wanted)}, sampling would give {sorted(given)}.",
            "Give the conditioning that the model was exported with.",
        )
    declared = wanted[SAMPLE].shape[1:]
    if len(declared) != len(shape) or any(d not in (None, s) for d, s in zip(declared, shape, strict=False)):
        raise UsageError(
            f"Image shape {list(shape)} does not fit the engine's {list(declared)}.", "Match the model."
        )
    for name, value in conditioning.items():
        if len(value) != len(seeds):
            raise UsageError(
                f"Conditioning '{name}' has {len(value)} rows for {len(seeds)} images.", "Give one each."
            )


def _check_finite(
    predicted: Floats, engine: Engine, sampler: Sampler, index: int, seeds: Sequence[int]
) -> None:
    bad = ~np.isfinite(predicted).reshape(len(predicted), -1).all(axis=1)
    if bool(bad.any()):
        row = int(np.flatnonzero(bad)[0])
        raise EngineError(
            f"{engine.label}: the output is not finite at step {index + 1} of {len(sampler.timesteps)} "
            f"(timestep {int(sampler.timesteps[index])}), seed {seeds[row]}.",
            "Run `gacq-deploy parity` on the run directory: it names the first layer that departs.",
        )
