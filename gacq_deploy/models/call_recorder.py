"""How does this pipeline call its denoiser? Found by running it twice, two steps of one image and of two.

Nothing is known beforehand of the denoiser's class. The state is the float argument shaped like the output; the
timestep is the number that follows the scheduler's; what has a row a state is conditioning, what has none is shared.
Rows of one image that start from one state are the branches of classifier-free guidance; the one that does not depend
on the prompt is the negative one. The denoiser itself runs twice only: for its first output, and to prove that it takes
one timestep a row, as calibration and every engine give it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gacq_deploy.artifact.call import ArgumentRecord, CallRecord, DType, Place, StateRecord, TimestepRecord
from gacq_deploy.errors import ModelError
from gacq_deploy.models.base import run_call
from gacq_deploy.models.call_capture import CallCapture, CapturedCall, blank
from gacq_deploy.models.loading import FAILURES
from gacq_deploy.models.noise_schedule import check_process
from gacq_deploy.models.pipelines import OpenPipeline
from gacq_deploy.models.source import Recording, plain_scheduler

_PROBE_PROMPTS = ("a photograph of a cat", "an oil painting of a mountain lake at dawn")
"""They differ, in length too: what is equal for both does not depend on the prompt, and what is not padded is seen."""
_CLOSE = 1e-3
"""Relative error at which two numbers are one timestep, and two float outputs one output."""
_LIKE_THESE = (
    "The nearest supported shape of it: forward(state [N, ...], timestep [N], tensors of N rows or shared ones) that "
    "returns a tensor like the state, or a tuple or output class that begins with one."
)


@dataclass(frozen=True)
class Layout:
    """Which row of a call belongs to which image: row ``image + count * branch``, or ``branch + branches * image``.

    ``negative`` is the branch that guidance leads away from, None without guidance.
    """

    branches: int
    by_image: bool
    negative: int | None

    def rows(self, images: int) -> list[list[int]]:
        """Return ``[image][branch]`` -> row; the negative branch comes first."""
        order = sorted(range(self.branches), key=lambda b: b != self.negative)
        stride, step = (self.branches, 1) if self.by_image else (1, images)
        first = [branch * step for branch in order]
        return [_shifted(first, image * stride) for image in range(images)]


def _shifted(rows: Sequence[int], by: int) -> list[int]:
    return [row + by for row in rows]


@dataclass(frozen=True)
class RecordedCall:
    """What two short runs of a pipeline showed."""

    recording: Recording
    layout: Layout


def record_call(opened: OpenPipeline, steps: int) -> RecordedCall:
    """Find out how a pipeline calls its denoiser.

    Args:
        opened: the pipeline; its denoiser holds the weights that will be calibrated.
        steps: of the trajectories to come: a schedule may depend on it.

    Raises:
        ModelError: the pipeline fails, or calls its denoiser in a way that calibration and engines cannot: says which,
            and what would do.
    """
    # one step would not show which number moves with the scheduler's timesteps
    single, whole_schedule = _short_run(opened, 1, max(2, steps))
    double, _ = _short_run(opened, 2, max(2, steps), output_like=single)
    call = _describe(opened, single, double, whole_schedule.timesteps)
    layout = _layout(opened, call, double)
    call = _proven(opened, call, single)
    return RecordedCall(Recording(call, whole_schedule.config), layout)


@dataclass(frozen=True)
class _Schedule:
    timesteps: Tensor
    config: dict[str, Any]


@dataclass(frozen=True)
class _Run:
    """The first two calls, and the denoiser's own output of the first as it came."""

    first: CapturedCall
    second: CapturedCall
    output: Any

    @property
    def rows(self) -> int:
        """Rows of the output."""
        return len(self.first.output)


class _Enough(Exception):
    """Two calls were seen; the rest of the trajectory tells nothing new."""


def _short_run(
    opened: OpenPipeline, images: int, steps: int, output_like: _Run | None = None
) -> tuple[_Run, _Schedule]:
    """Run the beginning of a trajectory of ``images`` images; the denoiser runs in the first call of one image."""
    original = opened.denoiser.forward
    outputs: list[Any] = []

    def predict(named: dict[str, Any]) -> Any:
        if output_like is not None:
            return blank(output_like.output, output_like.rows, images * output_like.rows)
        if not outputs:
            outputs.append(original(**named))
            return outputs[0]
        return blank(outputs[0], len(capture.calls[0].output), len(capture.calls[0].output))

    def keep(seen: CapturedCall) -> None:
        capture.calls.append(seen)
        if len(capture.calls) == 2:
            raise _Enough

    capture = CallCapture(opened.denoiser, predict, keep)
    with _remember_schedule(opened.pipeline) as given, capture.capturing(), suppress(_Enough):
        opened.run(_PROBE_PROMPTS[:images], range(images), steps, None)
    if len(capture.calls) < 2:
        raise ModelError(
            f"{opened.name} called its {opened.component} {len(capture.calls)} times in {steps} steps.",
            "Name the component that denoises with model.component.",
        )
    scheduler = opened.pipeline.scheduler
    config = {**dict(scheduler.config), "_class_name": type(scheduler).__name__, **given}
    config = plain_scheduler({k: v for k, v in config.items() if not k.startswith("_") or k in _KEPT})
    if "_use_default_values" in config:
        # in memory they stand in an order of chance, and the record's digest depends on it
        config["_use_default_values"] = sorted(config["_use_default_values"])
    check_process(config, f"{opened.name}'s scheduler")
    first, second = capture.calls
    return _Run(first, second, outputs[0] if outputs else None), _Schedule(
        scheduler.timesteps.detach().cpu().double(), config
    )


_KEPT = ("_class_name", "_use_default_values")
"""Private keys of a scheduler's configuration that say how the others are to be read."""


@contextmanager
def _remember_schedule(pipeline: Any) -> Iterator[dict[str, Any]]:
    """Note what a pipeline computes for its resolution and hands to its scheduler: a shift, and sigmas of its own."""
    scheduler = pipeline.scheduler
    original = scheduler.set_timesteps
    given: dict[str, Any] = {}

    def set_timesteps(*args: Any, **kwargs: Any) -> Any:
        has_sigmas = kwargs.get("sigmas") is not None
        if kwargs.get("mu") is not None:
            given.update(mu=float(kwargs["mu"]), pipeline_sigmas=has_sigmas)
        elif has_sigmas:
            given["pipeline_sigmas"] = True
        return original(*args, **kwargs)

    set_timesteps.__wrapped__ = original  # type: ignore[attr-defined] # pipelines look at the signature
    scheduler.set_timesteps = set_timesteps
    try:
        yield given
    finally:
        del scheduler.set_timesteps


def _describe(opened: OpenPipeline, single: _Run, double: _Run, schedule: Tensor) -> CallRecord:
    seen = {**single.first.leaves}
    if set(seen) != set(single.second.leaves) or set(seen) != set(double.first.leaves):
        changing = set(seen) ^ set(single.second.leaves) or set(seen) ^ set(double.first.leaves)
        raise ModelError(
            f"{opened.name} passes {_spell(next(iter(changing)))} in some calls and not in others.",
            _LIKE_THESE,
        )
    state = _find_state(opened, single)
    timestep = _find_timestep(opened, single, schedule)
    arguments: list[ArgumentRecord] = []
    constants: dict[str, Any] = {}
    names: set[str] = set()
    for path, value in seen.items():
        if path in (state.path, timestep.path):
            continue
        if isinstance(value, Tensor):
            name = _name(path, names)
            names.add(name)
            arguments.append(_argument(opened, name, path, single, double))
        else:
            _put_constant(opened, constants, path, value)
    if "return_dict" in constants:
        constants["return_dict"] = False
    return CallRecord(
        state=state,
        timestep=timestep,
        arguments=tuple(arguments),
        constants=constants,
        output=_output_path(single.output),
    )


def _output_path(output: Any) -> Place | None:
    if isinstance(output, Tensor):
        return ()
    return (str(next(iter(output))),) if type(output) is dict else None


def _find_state(opened: OpenPipeline, run: _Run) -> StateRecord:
    """Return the first float argument that the output is shaped like, but for a learned variance."""
    output = run.first.output
    floats = {p: t for p, t in run.first.tensors.items() if t.is_floating_point() and t.ndim > 1}
    for path, tensor in floats.items():
        alike = tensor.ndim == output.ndim and tensor.shape[2:] == output.shape[2:]
        if alike and len(tensor) == len(output) and output.shape[1] in (tensor.shape[1], 2 * tensor.shape[1]):
            return StateRecord(path=path, shape=tuple(tensor.shape[1:]))
    shapes = ", ".join(f"{_spell(p)} {[*t.shape]}" for p, t in floats.items()) or "no float tensor"
    raise ModelError(
        f"{type(opened.denoiser).__name__} returns {[*output.shape]}, and no argument is shaped like that: it takes "
        f"{shapes}. Inpainting and upscaling models, which take more channels than they predict, are not supported.",
        _LIKE_THESE,
    )


def _find_timestep(opened: OpenPipeline, run: _Run, schedule: Tensor) -> TimestepRecord:
    """Return the argument that moves from the first call to the second as the scheduler's timesteps do."""
    rows = run.rows
    for path, value in run.first.leaves.items():
        first, second = _number(value, rows), _number(run.second.leaves[path], rows)
        if first is None or second is None or first == second:
            continue
        # timestep 0 is fed as 0 whatever the scale
        ratios = [fed / float(t) for fed, t in ((first, schedule[0]), (second, schedule[1])) if float(t)]
        if ratios and ratios[0] > 0 and all(abs(r / ratios[0] - 1) < _CLOSE for r in ratios):
            scale = 1.0 if abs(ratios[0] - 1) < _CLOSE else ratios[0]
            total = float(opened.pipeline.scheduler.config.get("num_train_timesteps", 1000))
            # exactly the pipelines' own scale, not a quotient of two float32 numbers
            scale = 1 / total if abs(scale * total - 1) < _CLOSE else scale
            whole = scale == 1.0 and bool((schedule == schedule.round()).all())
            return TimestepRecord(path=path, dtype="int64" if whole else "float32", scale=scale)
    raise ModelError(
        f"No argument of {type(opened.denoiser).__name__} follows the timesteps of "
        f"{type(opened.pipeline.scheduler).__name__} ({float(schedule[0]):g}, {float(schedule[1]):g}, ...).",
        _LIKE_THESE,
    )


def _number(value: Any, rows: int) -> float | None:
    """Return the one number that a timestep holds: a scalar, or the same for every row."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return float(value)
    if not isinstance(value, Tensor) or value.dtype == torch.bool or value.numel() not in (1, rows):
        return None
    flat = value.detach().double().flatten()
    return float(flat[0]) if value.ndim <= 1 and bool((flat == flat[0]).all()) else None


def _argument(opened: OpenPipeline, name: str, path: Place, single: _Run, double: _Run) -> ArgumentRecord:
    one, two = single.first.tensors[path], double.first.tensors[path]
    if not bool(torch.isfinite(one).all()):
        raise ModelError(
            f"{opened.name} passes {_spell(path)} {[*one.shape]} with NaN or Inf in it, before anything is quantized.",
            "Check what makes it, a text encoder as a rule: its configuration, and the type of its weights.",
        )
    if not _equal(one, single.second.tensors[path]):
        raise ModelError(
            f"{opened.name} changes {_spell(path)} {[*one.shape]} from step to step, and it is not the timestep.",
            "Supported are arguments that stay as they are during a trajectory.",
        )
    rows = single.rows
    dtype = _dtype(one, path)
    upper = int(one.max()) + 1 if dtype == "int64" and one.numel() else None
    if one.ndim and (len(one), len(two)) == (rows, 2 * rows) and one.shape[1:] == two.shape[1:]:
        return ArgumentRecord(name=name, path=path, dtype=dtype, shape=tuple(one.shape[1:]), upper=upper)
    if one.shape == two.shape:
        return ArgumentRecord(
            name=name, path=path, dtype=dtype, shape=tuple(one.shape), upper=upper, shared=True
        )
    raise ModelError(
        f"{_spell(path)} is {[*one.shape]} for {rows} rows and {[*two.shape]} for {2 * rows}: its length depends on "
        "the prompt.",
        "Supported are arguments padded to one length (for instance padding='max_length' in the pipeline).",
    )


def _dtype(value: Tensor, path: Place) -> DType:
    if value.dtype == torch.bool:
        return "bool"
    if value.is_floating_point():
        return "float32"
    if value.is_complex():
        raise ModelError(f"{_spell(path)} is complex.", "No engine takes complex inputs.")
    return "int64"


def _put_constant(opened: OpenPipeline, constants: dict[str, Any], path: Place, value: Any) -> None:
    plain = value is None or isinstance(value, bool | int | float | str) or value in ({}, [], ())
    if not plain:
        raise ModelError(
            f"{opened.name} passes {_spell(path)}, a {type(value).__name__}, which no engine can take.",
            "Leave it out of the pipeline.",
        )
    here = constants
    for key in path[:-1]:
        if isinstance(key, int):
            raise ModelError(f"{opened.name} passes {_spell(path)} inside a list.", _LIKE_THESE)
        here = here.setdefault(key, {})
    here[str(path[-1])] = list(value) if isinstance(value, tuple) else value


def _name(path: Place, taken: set[str]) -> str:
    """Return the shortest ending of a path that is no other argument's name."""
    parts = [str(p) for p in path]
    for start in range(len(parts) - 1, -1, -1):
        name = "_".join(parts[start:])
        if name not in taken and not name[0].isdigit() and name not in ("sample", "timestep", "output"):
            return name
    return next(f"argument_{i}" for i in itertools.count() if f"argument_{i}" not in taken)


def _layout(opened: OpenPipeline, call: CallRecord, double: _Run) -> Layout:
    states = double.first.tensors[call.state.path]
    rows = len(states)
    alike = [r for r in range(rows) if torch.equal(states[r], states[0])]
    branches = len(alike)
    by_image = alike == list(range(branches))
    if rows != 2 * branches or alike not in (list(range(branches)), list(range(0, rows, 2))):
        raise ModelError(
            f"{opened.name} calls its denoiser with {rows} rows for 2 images, {branches} of the first image's state.",
            "Supported: as many rows an image, each beginning with its image's state.",
        )
    if branches == 1:
        return Layout(1, by_image, None)
    plain = Layout(branches, by_image, None).rows(2)
    deaf = [
        b for b in range(branches) if _same_conditioning(call, double.first.tensors, plain[0][b], plain[1][b])
    ]
    if branches != 2 or len(deaf) != 1:
        raise ModelError(
            f"{opened.name} calls its denoiser with {branches} rows an image, of which {len(deaf)} do not depend on "
            "the prompt.",
            "Supported: no guidance, or classifier-free guidance with one positive and one negative row.",
        )
    return Layout(branches, by_image, deaf[0])


def _same_conditioning(call: CallRecord, tensors: Mapping[Place, Tensor], a: int, b: int) -> bool:
    return all(x.shared or torch.equal(tensors[x.path][a], tensors[x.path][b]) for x in call.arguments)


def _proven(opened: OpenPipeline, call: CallRecord, run: _Run) -> CallRecord:
    """Return the call as it is proved to work: fed whole timesteps, or, where it needs them, the same as floats."""
    timestep = run.first.leaves[call.timestep.path]
    needs_floats = isinstance(timestep, Tensor) and timestep.is_floating_point()
    try:
        _prove_rows(opened, call, run)
    except ModelError:
        if call.timestep.dtype != "int64" or not needs_floats:
            raise
        floats = call.timestep.model_copy(update={"dtype": "float32"})
        call = call.model_copy(update={"timestep": floats})
        _prove_rows(opened, call, run)
    return call


@torch.no_grad()
def _prove_rows(opened: OpenPipeline, call: CallRecord, run: _Run) -> None:
    """Ask for one state at two timesteps in one call: calibration mixes timesteps, and engines batch images."""
    fed = [_number(c.leaves[call.timestep.path], run.rows) for c in (run.first, run.second)]
    dtype = torch.int64 if call.timestep.dtype == "int64" else torch.float32
    tensors = run.first.tensors
    state = tensors[call.state.path][:1].repeat_interleave(2, 0)
    both = torch.tensor([fed[0], fed[1]], dtype=torch.float64).to(dtype).to(state.device)
    conditioning = conditioning_rows(call, tensors, [0, 0])
    kind = type(opened.denoiser).__name__
    try:
        predicted = run_call(opened.denoiser, call, state, both, conditioning)
    except FAILURES as error:
        first = str(error).partition("\n")[0]
        raise ModelError(
            f"{kind} does not take one timestep a row: {type(error).__name__}: {first}",
            _LIKE_THESE,
        ) from error
    expected = run.first.output[:1, : state.shape[1]]
    distance = float((predicted[:1] - expected).norm() / expected.norm().clamp(min=1e-30))
    # so written, NaN is no agreement either
    if predicted.shape != state.shape or not distance < _CLOSE:
        raise ModelError(
            f"{kind} predicts differently when it is given one timestep a row (relative error {distance:.1e}).",
            _LIKE_THESE,
        )
    if torch.equal(predicted[0], predicted[1]):
        raise ModelError(f"{kind} gives all rows of a call one timestep, the first's.", _LIKE_THESE)


def captured_timestep(call: CallRecord, seen: CapturedCall, rows: int) -> float:
    """Return the timestep of a call, as the denoiser is fed it.

    Raises:
        ModelError: it differs from row to row.
    """
    timestep = _number(seen.leaves[call.timestep.path], rows)
    if timestep is None:
        raise ModelError(
            f"{_spell(call.timestep.path)} differs from row to row within a call.",
            "Supported are pipelines that take all images of a call through one timestep.",
        )
    return timestep


def conditioning_rows(
    call: CallRecord, tensors: Mapping[Place, Tensor], rows: Sequence[int]
) -> dict[str, Tensor]:
    """Return input name -> the given rows of the conditioning, ``[len(rows), ...]``; shared tensors once a row."""
    chosen = {}
    for argument in call.arguments:
        value = tensors[argument.path].detach()
        value = value.to(getattr(torch, argument.dtype))
        chosen[argument.name] = (
            value.expand(len(rows), *value.shape) if argument.shared else value[list(rows)]
        ).clone()
    return chosen


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


def _spell(path: Place) -> str:
    head, *rest = path
    return f"'{head}{''.join(f'[{key!r}]' for key in rest)}'"
