"""Does the float graph compute what torch computes, on states of any size, and where does it first not?

An exporter may change the function: onnxscript's own rules drop an addition of at most 1e-8 and a factor within 1e-5
of 1, whatever they do. On recorded states that may not show, for their numbers are of the order of 1. A state near 0
shows what such an addition, or another epsilon, is there for; a large one shows where a bound has gone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gacq_deploy.artifact.call import SAMPLE
from gacq_deploy.backends.pieces import PieceEngine
from gacq_deploy.errors import ExportError
from gacq_deploy.graph.header import read_header
from gacq_deploy.graph.index import GraphIndex, module_of
from gacq_deploy.graph.nodes import name_of
from gacq_deploy.metrics.arrays import euclidean_error
from gacq_deploy.spec import Array

if TYPE_CHECKING:
    from gacq_deploy.models.base import Denoiser

STATE_FACTORS = {"0": 0.0, "2^-30": 2.0**-30, "2^-10": 2.0**-10, "2^3": 8.0}
"""What recorded states are multiplied by, and how that is written.

A variance with ``+ 1e-8`` shows at 2^-10, a denominator of ``|x| + 1e-9`` at 2^-30, and any epsilon that keeps a
quotient finite at 0. A bound of a few standard deviations shows at 2^3.
"""

TOLERANCE = 1e-4
"""Of a row's answer, or a module's tensor, relative to its norm."""
SCALED_TOLERANCE = 1e-2
"""The same on states scaled up and down. What was left out there changes an answer by as much as it is.

What is next to constant is normalized into numbers made of rounding: 1.2e-4 of SDXL's answer at 2^-30, 4e-4 of a tiny
UNet's at 0.
"""
_NOISE = 10
"""Times what torch's own rounding does: beyond that a graph computes something else."""


@dataclass(frozen=True)
class FloatReference:
    """What torch answers on ``N`` rows: recorded states, then one for each of ``STATE_FACTORS``.

    ``inputs`` name -> ``[N, ...]``; ``answers`` ``[N, ...]``; ``states`` says of each row what it is, ``tolerances``
    what relative error is always allowed.
    """

    inputs: Mapping[str, Array]
    answers: Array
    states: tuple[str, ...]
    tolerances: tuple[float, ...]


@dataclass(frozen=True)
class Departure:
    """The first place of a graph, in the order in which it runs, where it is not what torch computes."""

    module: str
    node: str
    error: float
    """Relative, in Euclidean norms."""


def float_reference(denoiser: Denoiser, inputs: Mapping[str, Array], recorded: Array) -> FloatReference:
    """Let torch answer on states scaled up and down.

    Args:
        denoiser: the model that the graph is made from.
        inputs: recorded sample, timestep and conditioning by name, each ``[N, ...]``.
        recorded: what the model answered to them, ``[N, ...]``.
    """
    from gacq_deploy.models.answers import answer_rows

    rows = np.linspace(0, len(recorded) - 1, len(STATE_FACTORS)).round().astype(int)
    scaled = {name: value[rows] for name, value in inputs.items()}
    factors = np.array(list(STATE_FACTORS.values()), np.float32)
    scaled[SAMPLE] = scaled[SAMPLE] * factors.reshape(-1, *([1] * (recorded.ndim - 1)))
    return FloatReference(
        inputs={name: np.concatenate([value, scaled[name]]) for name, value in inputs.items()},
        answers=np.concatenate([recorded, answer_rows(denoiser, scaled)]),
        states=(
            *["a recorded state"] * len(recorded),
            *(f"a recorded state times {f}" for f in STATE_FACTORS),
        ),
        tolerances=(*[TOLERANCE] * len(recorded), *[SCALED_TOLERANCE] * len(STATE_FACTORS)),
    )


def require_same(path: Path, output: Array, reference: FloatReference, load: Callable[[], Denoiser]) -> None:
    """Refuse a float graph that computes something else than torch.

    Args:
        path: its file.
        output: what it answers to the inputs of the reference.
        reference: what torch answers.
        load: loads the model again, to ask it what rounding does, and for the first difference.

    Raises:
        ExportError: a row departs by more than is allowed; it names the first module and node that do.
    """
    errors = _row_errors(output, reference.answers)
    pairs = zip(errors, reference.tolerances, strict=True)
    if all(error < tolerance for error, tolerance in pairs):  # NaN fails, too
        return
    denoiser = load()
    # what fails most clearly is named: a value that is none first
    for place in np.argsort(-np.nan_to_num(errors, nan=np.inf)):
        row = {name: value[place : place + 1] for name, value in reference.inputs.items()}
        tolerance = reference.tolerances[place]
        if errors[place] < tolerance:
            continue
        allowed = _allowed_for(denoiser, row, tolerance)
        if errors[place] < allowed:
            continue
        found = first_departure(path, denoiser, row, tolerance)
        where = (
            "Every module in it computes what torch does: the recorded answers are not this model's."
            if found is None
            else f"The first difference is in module '{found.module}', at node '{found.node}': {found.error:.2e}."
        )
        raise ExportError(
            f"{path.name} in ONNX Runtime departs from torch by {errors[place]:.2e} (relative) on "
            f"{reference.states[place]}; allowed is {allowed:.0e}. {where}",
            "Please report the model's class.",
        )


def first_departure(
    path: Path, denoiser: Denoiser, row: Mapping[str, Array], tolerance: float = TOLERANCE
) -> Departure | None:
    """Return the first module whose tensor in the graph is not what torch returns, but for rounding.

    Everything before it agrees, so what it reads does.

    Args:
        path: the float graph.
        denoiser: the model that it was made from.
        row: sample, timestep and conditioning by name, each ``[1, ...]``.
        tolerance: relative error that is always allowed.

    Returns:
        None where every module agrees that returns one tensor of the graph.

    Raises:
        EngineError, ResourceError: as for running the graph.
    """
    from gacq_deploy.models.answers import module_returns, other_rounding, spread_values

    results = _results(path)
    known = dict(denoiser.module.named_modules())
    modules = {module for module, _ in results.values() if module in known}
    expected = module_returns(denoiser, row, modules)
    with other_rounding(denoiser.module):
        rounded = module_returns(denoiser, row, modules)
    with PieceEngine(path, watched=list(results)) as engine:
        for name, value in engine.watch(row):
            module, node = results.get(name, ("", ""))
            returned = expected.get(module)
            if returned is None or returned.shape != value.shape or not np.isfinite(returned.values).all():
                continue
            error = euclidean_error(spread_values(value), returned.values)
            if not error < _allowed(euclidean_error(rounded[module].values, returned.values), tolerance):
                return Departure(module, node, error)
    return None


def _allowed_for(denoiser: Denoiser, row: Mapping[str, Array], tolerance: float) -> float:
    from gacq_deploy.models.answers import answer_rows, other_rounding

    exact = answer_rows(denoiser, row)
    with other_rounding(denoiser.module):
        (noise,) = _row_errors(answer_rows(denoiser, row), exact)
    return _allowed(noise, tolerance)


def _allowed(noise: float, tolerance: float) -> float:
    """Return what relative error is allowed where torch's own rounding makes one of ``noise``."""
    return max(tolerance, _NOISE * noise)


def _results(path: Path) -> dict[str, tuple[str, str]]:
    """Return for the last tensor of each module its name and that of the node; of several, the innermost module."""
    last: dict[str, tuple[str, str]] = {}
    for node in GraphIndex(read_header(path)).in_order():
        module = module_of(node)
        while module:
            last[module] = (node.output[0], name_of(node))
            module = module.rpartition(".")[0]
    return {
        tensor: (module, node)
        for module, (tensor, node) in sorted(last.items(), key=lambda item: len(item[0]))
    }


def _row_errors(candidate: Array, reference: Array) -> list[float]:
    """Return the relative error of each row of ``[N, ...]``, of its own norm; 0 where the reference is not finite."""
    pairs = zip(candidate, reference, strict=True)
    return [euclidean_error(c, r) if bool(np.isfinite(r).all()) else 0.0 for c, r in pairs]
