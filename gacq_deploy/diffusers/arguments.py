"""What does a pipeline's call mean to an engine? Named arrays of equal rows, or a refusal: nothing is swallowed."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gacq_deploy.artifact.call import SAMPLE, TIMESTEP, ArgumentRecord, CallRecord, Place
from gacq_deploy.backends.base import TensorInfo
from gacq_deploy.errors import ModelError, UsageError
from gacq_deploy.models.call_capture import flatten
from gacq_deploy.spec import Array

_NOT_FROM_ENGINE = "The engine runs what was exported: leave it out, or use the float model for this."
_RETURN_DICT = "return_dict"
"""Decides the form of the output, and is none of the engine's inputs."""


@dataclass(frozen=True)
class Call:
    """One call: feeds by input name, each ``[N, ...]``; the state as it was given; the form of the output."""

    feeds: dict[str, Array]
    sample: Tensor
    return_dict: bool


class CallReader:
    """Reads the calls of one denoiser.

    Args:
        signature: how the model is called, without ``self``.
        call: what its arguments are.
        inputs: what the engine takes.
        labels: input name -> rows of its label table.

    Raises:
        ModelError: the engine takes other inputs than the call has.
    """

    def __init__(
        self,
        signature: inspect.Signature,
        call: CallRecord,
        inputs: tuple[TensorInfo, ...],
        labels: Mapping[str, int],
    ) -> None:
        self._signature = signature
        self._call = call
        self._inputs = {info.name: info for info in inputs}
        self._labels = labels
        self._fixed = _fixed_values(signature, call)
        named = [SAMPLE, TIMESTEP, *(a.name for a in call.arguments)]
        if set(named) != set(self._inputs):
            raise ModelError(
                f"The engine takes {', '.join(sorted(self._inputs))}; the calibrated model is called with"
                f" {', '.join(sorted(named))}.",
                "Open the engine and the artifact of one run directory.",
            )

    def read(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        """Return the engine's feeds of a call.

        Raises:
            UsageError: an argument that the engine cannot honour or that is unknown, one that is lacking, a timestep of
                another kind than the model was calibrated with, a label without a class, rows that disagree, or a state
                that asks for gradients.
        """
        leaves = self._bind(args, kwargs)
        return_dict = bool(leaves.pop((_RETURN_DICT,), True))
        sample = leaves.pop(self._call.state.path, None)
        timestep = leaves.pop(self._call.timestep.path, None)
        conditioning = {a.name: leaves.pop(a.path, None) for a in self._call.arguments}
        self._check_rest(leaves)
        self._check_lacking(sample, timestep, conditioning)
        _check_state(sample)
        rows = len(sample)
        dtype = self._call.timestep.dtype
        feeds = {SAMPLE: self._array(SAMPLE, sample), TIMESTEP: _timesteps(timestep, rows, dtype)}
        for argument in self._call.arguments:
            feeds[argument.name] = self._rows_of(argument, conditioning[argument.name], rows)
        return Call(feeds, sample, return_dict)

    def _bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[Place, Any]:
        """Return every value of a call by its place, those that the model would assume included."""
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise UsageError(f"The denoiser's call does not fit: {error}.", _NOT_FROM_ENGINE) from error
        bound.apply_defaults()
        return _leaves(self._signature, bound.arguments)

    def _check_rest(self, leaves: Mapping[Place, Any]) -> None:
        """Refuse what is neither an input nor as it was when the model was calibrated."""
        surplus = []
        for path, value in leaves.items():
            fixed = self._fixed.get(path)
            if _equal(value, fixed) or (_says_nothing(path, value) and _says_nothing(path, fixed)):
                continue
            exported = "" if _says_nothing(path, fixed) else f" (calibrated with {fixed!r})"
            surplus.append(_spell(path) + exported)
        if surplus:
            raise UsageError(
                f"The engine cannot honour {', '.join(surplus)}: it takes"
                f" {', '.join(self._inputs)} and nothing else.",
                _NOT_FROM_ENGINE,
            )
        lost = [
            f"{_spell(path)} = {value!r}"
            for path, value in self._fixed.items()
            if path not in leaves and not _says_nothing(path, value)
        ]
        if lost:
            raise UsageError(
                f"The call lacks {', '.join(lost)}, which the model was calibrated with.", "Pass it."
            )

    def _check_lacking(self, sample: Any, timestep: Any, conditioning: Mapping[str, Any]) -> None:
        call = self._call
        given = [(call.state.path, sample), (call.timestep.path, timestep)]
        given += [(a.path, conditioning[a.name]) for a in call.arguments]
        lacking = [_spell(path) for path, value in given if value is None]
        if lacking:
            raise UsageError(f"The call lacks {', '.join(lacking)}, which the engine takes.", "Pass it.")

    def _rows_of(self, argument: ArgumentRecord, value: Any, rows: int) -> Array:
        read = self._labels_of if argument.name in self._labels else self._array
        array = read(argument.name, value)
        name, rank = _spell(argument.path), len(argument.shape)
        if argument.shared:
            array = _the_one_of(array, rank, name)
            return np.broadcast_to(array, (rows, *array.shape))
        if rank == 0 and array.size == 1:
            return np.broadcast_to(array.reshape(()), (rows,))
        if array.ndim == 0 or len(array) != rows:
            raise UsageError(
                f"'{name}' has shape {list(array.shape)} for {rows} states.", "Give every state one row."
            )
        return array

    def _array(self, name: str, value: Any) -> Array:
        array = _host(value)
        declared = np.dtype(self._inputs[name].dtype)
        if declared.kind in "iub" and array.dtype.kind not in "iub":
            raise UsageError(
                f"'{name}' is {array.dtype.name}, the engine takes whole numbers.", "Pass integers."
            )
        if declared.kind == "b" and array.dtype.kind != "b" and not np.isin(array, (0, 1)).all():
            raise UsageError(f"'{name}' holds other numbers than 0 and 1.", "Pass true or false.")
        return array.astype(declared, copy=False)

    def _labels_of(self, name: str, value: Any) -> Array:
        array = self._array(name, value)
        table = self._labels[name]
        wrong = array[(array < 0) | (array >= table)]
        if wrong.size:
            raise UsageError(
                f"Label {int(wrong.flat[0])} in '{name}' is out of range: the model's table has {table} rows.",
                f"Choose 0 to {table - 1}.",
            )
        return array


def signature_of(call: CallRecord, kind: type[Any] | None) -> inspect.Signature:
    """Return how a denoiser is called, without ``self``: as its class, or, of an unknown one, as it was recorded.

    The recorded names are then keywords; the state and the timestep may come without.
    """
    if kind is not None:
        whole = inspect.signature(kind.forward)
        return whole.replace(parameters=list(whole.parameters.values())[1:])
    first = [str(call.state.path[0]), str(call.timestep.path[0])]
    fixed = {**call.constants, **dict.fromkeys(str(a.path[0]) for a in call.arguments), _RETURN_DICT: True}
    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in first]
    parameters += [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
        for name, default in fixed.items()
        if name not in first
    ]
    return inspect.Signature(parameters)


def _fixed_values(signature: inspect.Signature, call: CallRecord) -> dict[Place, Any]:
    """Return what was the same in every call when the model was calibrated, by place: given, or the class's default."""
    defaults = {p.name: p.default for p in signature.parameters.values() if p.default is not p.empty}
    values = {k: v for k, v in {**defaults, **call.constants}.items() if k != _RETURN_DICT}
    inputs = {call.state.path, call.timestep.path, *(a.path for a in call.arguments)}
    return {path: value for path, value in _leaves(signature, values).items() if path not in inputs}


def _leaves(signature: inspect.Signature, given: Mapping[str, Any]) -> dict[Place, Any]:
    rest = next((p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD), None)
    named = {k: v for k, v in given.items() if k != rest} | dict(given.get(rest or "") or {})
    return dict(flatten(named)) if named else {}


def _says_nothing(path: Place, value: Any) -> bool:
    """Whether a value asks for nothing: absent, off, empty, or an attention's LoRA scale of 1."""
    if value is None or value is False or (isinstance(value, dict | list | tuple) and not value):
        return True
    is_scale = path[-1] == "scale" and str(path[0]).endswith("attention_kwargs")
    return is_scale and isinstance(value, int | float) and value == 1


def _equal(value: Any, fixed: Any) -> bool:
    plain = (bool, int, float, str)
    return isinstance(value, plain) and isinstance(fixed, plain) and value == fixed


def _spell(path: Place) -> str:
    head, *rest = path
    text = str(head)
    for key in rest:
        text += f"[{key}]" if isinstance(key, int) else f".{key}"
    return text


def _check_state(sample: Any) -> None:
    if not isinstance(sample, Tensor) or sample.ndim == 0 or len(sample) == 0:
        what = f"shape {list(sample.shape)}" if isinstance(sample, Tensor) else type(sample).__name__
        raise UsageError(f"The state is {what}, not a tensor [N, ...].", "Pass at least one state.")
    if sample.requires_grad and torch.is_grad_enabled():
        raise UsageError(
            "The state asks for gradients, and an engine has none.",
            "Run under torch.no_grad(), or use the float model.",
        )


def _the_one_of(array: Array, rank: int, name: str) -> Array:
    """Return what all rows of a call share, ``rank`` axes; it may come once a row, if it is the same."""
    if array.ndim != rank + 1 or not len(array):
        return array
    if not np.array_equal(array, np.broadcast_to(array[:1], array.shape)):
        raise UsageError(
            f"'{name}' differs from row to row; the model takes one for all.", "Give every row the same."
        )
    return np.asarray(array[0])


def _timesteps(value: Any, rows: int, dtype: str) -> Array:
    """Return timesteps ``[rows]`` of a number or tensor, 0-d, ``[1]`` or ``[rows]``."""
    given = np.atleast_1d(_host(value).astype(np.float64))
    if given.shape not in {(1,), (rows,)}:
        raise UsageError(
            f"The timestep has shape {list(given.shape)} for {rows} states.", "Pass one, or one a state."
        )
    if dtype == "int64" and not np.array_equal(given, np.round(given)):  # NaN does not equal itself
        raise UsageError(
            f"Timestep {given[given != np.round(given)][0]:.3f} is not whole, the engine takes whole ones.",
            "Make the scheduler with timestep_spacing='leading' and without karras, exponential or beta sigmas.",
        )
    return np.array(np.broadcast_to(given, (rows,))).astype(dtype)


def _host(value: Any) -> Array:
    tensor = torch.as_tensor(value).detach().cpu()
    if tensor.dtype == torch.bfloat16:  # numpy has none
        tensor = tensor.float()
    return np.asarray(tensor.numpy())
