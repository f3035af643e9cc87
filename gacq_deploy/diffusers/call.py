"""What does a pipeline's call mean to an engine? Named arrays of equal rows, or a refusal: nothing is swallowed."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gacq_deploy.backends.base import Array, TensorInfo
from gacq_deploy.call import SAMPLE, TIMESTEP
from gacq_deploy.errors import UsageError

_NOT_FROM_ENGINE = "The engine runs what was exported: leave it out, or use the float model for this."


@dataclass(frozen=True)
class Call:
    """One call: feeds by input name, each ``[N, ...]``; the state as it was given; the form of the answer."""

    feeds: dict[str, Array]
    sample: Tensor
    return_dict: bool


class CallReader:
    """Reads the calls of one denoiser.

    Args:
        signature: how the model of diffusers is called, the state first.
        inputs: what the engine takes.
        labels: input name -> rows of its label table.
    """

    def __init__(
        self, signature: inspect.Signature, inputs: tuple[TensorInfo, ...], labels: Mapping[str, int]
    ) -> None:
        self._signature = signature
        self._state = next(iter(signature.parameters))
        self._inputs = {info.name: info for info in inputs}
        self._labels = labels

    def read(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        """Return the engine's feeds of a call.

        Raises:
            UsageError: an argument that the engine cannot honour or that is unknown, one that is lacking, a fractional
                timestep, a label without a class, rows that disagree, or a state that asks for gradients.
        """
        try:
            given = dict(self._signature.bind(*args, **kwargs).arguments)
        except TypeError as error:
            raise UsageError(f"The denoiser's call does not fit: {error}.", _NOT_FROM_ENGINE) from error
        sample, timestep = given.pop(self._state), given.pop(TIMESTEP, None)
        return_dict = bool(given.pop("return_dict", True))
        given |= given.pop("added_cond_kwargs", None) or {}
        given = {name: value for name, value in given.items() if not _says_nothing(value)}
        self._check_names(given, timestep)
        _check_state(sample)
        rows = len(sample)
        feeds = {SAMPLE: self._array(SAMPLE, sample), TIMESTEP: _timesteps(timestep, rows)}
        for name, value in given.items():
            array = self._labels_of(name, value, rows) if name in self._labels else self._array(name, value)
            if array.ndim == 0 or len(array) != rows:
                raise UsageError(
                    f"'{name}' has shape {list(array.shape)} for {rows} states.", "Give every state one row."
                )
            feeds[name] = array
        return Call(feeds, sample, return_dict)

    def _check_names(self, given: Mapping[str, Any], timestep: Any) -> None:
        wanted = set(self._inputs) - {SAMPLE, TIMESTEP}
        surplus, lacking = sorted(set(given) - wanted), sorted(wanted - set(given))
        if surplus:
            raise UsageError(
                f"The engine cannot honour {', '.join(surplus)}: it takes"
                f" {', '.join(self._inputs)} and nothing else.",
                _NOT_FROM_ENGINE,
            )
        if lacking or timestep is None:
            raise UsageError(
                f"The call lacks {', '.join(lacking) or TIMESTEP}, which the engine takes.", "Pass it."
            )

    def _array(self, name: str, value: Any) -> Array:
        array = _host(value)
        declared = np.dtype(self._inputs[name].dtype)
        if declared.kind in "iu" and array.dtype.kind not in "iu":
            raise UsageError(
                f"'{name}' is {array.dtype.name}, the engine takes whole numbers.", "Pass integers."
            )
        return array.astype(declared, copy=False)

    def _labels_of(self, name: str, value: Any, rows: int) -> Array:
        array = self._array(name, value)
        table = self._labels[name]
        wrong = array[(array < 0) | (array >= table)]
        if wrong.size:
            raise UsageError(
                f"Label {int(wrong.flat[0])} in '{name}' is out of range: the model's table has {table} rows.",
                f"Choose 0 to {table - 1}.",
            )
        return np.array(np.broadcast_to(array, (rows,))) if array.size == 1 else array


def _says_nothing(value: Any) -> bool:
    return value is None or (isinstance(value, dict | list | tuple) and not value)


def _check_state(sample: Any) -> None:
    if not isinstance(sample, Tensor) or sample.ndim == 0 or len(sample) == 0:
        what = f"shape {list(sample.shape)}" if isinstance(sample, Tensor) else type(sample).__name__
        raise UsageError(f"The state is {what}, not a tensor [N, C, H, W].", "Pass at least one state.")
    if sample.requires_grad and torch.is_grad_enabled():
        raise UsageError(
            "The state asks for gradients, and an engine has none.",
            "Run under torch.no_grad(), or use the float model.",
        )


def _timesteps(value: Any, rows: int) -> Array:
    """Return timesteps ``[rows]`` int64 of a number or tensor, 0-d, ``[1]`` or ``[rows]``."""
    given = np.atleast_1d(_host(value).astype(np.float64))
    if given.shape not in {(1,), (rows,)}:
        raise UsageError(
            f"The timestep has shape {list(given.shape)} for {rows} states.", "Pass one, or one a state."
        )
    if not np.array_equal(given, np.round(given)):  # NaN does not equal itself
        raise UsageError(
            f"Timestep {given[given != np.round(given)][0]:.3f} is not whole, the engine takes whole ones.",
            "Make the scheduler with timestep_spacing='leading' and without karras, exponential or beta sigmas.",
        )
    return np.array(np.broadcast_to(given, (rows,))).astype(np.int64)


def _host(value: Any) -> Array:
    tensor = torch.as_tensor(value).detach().cpu()
    if tensor.dtype == torch.bfloat16:  # numpy has none
        tensor = tensor.float()
    return np.asarray(tensor.numpy())
