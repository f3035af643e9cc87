"""Can a model be what its configuration says? Asked of its class and the weights' headers, while it costs no memory.

It is built on torch's device ``meta``, where a tensor is its shape alone, and takes a step there. What fails, and what
has other shapes than the file of weights, is laid at the door of a key: the one without whose value it would not be so.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gacq_deploy.errors import ModelError, RecipeError
from gacq_deploy.models.base import Config, Family, run_call
from gacq_deploy.models.configuration import defaults_of, refused, state_shape
from gacq_deploy.models.guilty import Sizes, WhatIsWrong, WorkSpent, guilty_keys
from gacq_deploy.models.half_storage import without_weights
from gacq_deploy.models.loading import FAILURES, first_line, quiet_loading

_ROWS = 2
_USUAL_SIZE = 64
"""Every level of a UNet can halve it."""
_SPARE = 64
"""Parameters that a model may have beyond twice those of its file: a class may share or rename some."""
_MOST_LOOKS = 32
"""Models of the size of its file that are made at most to find the guilty key of one."""

TensorShapes = Mapping[str, tuple[int, ...]]
"""Tensor name -> shape."""

_FAILURES: tuple[type[Exception], ...] = (*FAILURES, MemoryError)


class _TooMany(RuntimeError):
    """A model grows past what its file of weights could fill."""


@contextmanager
def _silent() -> Iterator[None]:
    with warnings.catch_warnings(), quiet_loading():
        warnings.simplefilter("ignore")  # torch of tensors without elements
        yield


@dataclass(frozen=True)
class Blueprint:
    """A model that is not built yet: its class, its configuration and the file of that, and what its weights are."""

    kind: type[Any]
    config: Config
    place: Path
    stored: TensorShapes
    """The tensors in the files of weights, from their headers."""
    make: Callable[[dict[str, Any]], nn.Module]
    """Builds it from a configuration."""
    defaults: Config
    """Key -> what the class takes where nothing is said."""

    @classmethod
    def of_diffusers(cls, kind: Any, config: Config, place: Path, stored: TensorShapes) -> Blueprint:
        """Return that of a class of diffusers."""
        return cls(kind, config, place, stored, kind.from_config, defaults_of(kind))

    @_silent()
    def check(self, family: Family | None = None, asked_size: int | None = None) -> None:
        """Refuse a configuration that cannot be built, makes other weights than the file's, or cannot run.

        Args:
            family: of a denoiser; if it tells how the model is called, one step is run.
            asked_size: height and width that the recipe asks for, in place of the configuration's.

        Raises:
            ArtifactError: with file, key and value.
            RecipeError: the model cannot run at the size that was asked for.
        """
        built = self._build(self.config)
        if isinstance(built, str):
            raise refused(self.place, self._guilty(self._unbuilt, built), self.config, f"cannot be: {built}")
        self._check_shapes(_shapes(built))
        size = self.config.get("sample_size") if asked_size is None else asked_size
        if size is None or family is None or not _tells_its_call(family, self.config):
            return

        def fails(config: Config) -> str | None:
            return self._failure(config, family)

        failure = fails({**self.config, "sample_size": size})
        if failure is None:
            return
        if asked_size is not None and fails({**self.config, "sample_size": _USUAL_SIZE}) is None:
            multiple = (
                "" if family.size_multiple is None else f"a multiple of {family.size_multiple(self.config)}, "
            )
            raise RecipeError(
                f"model.sample_size is {asked_size}, and the model cannot run at that size: {failure}.",
                f"Choose {multiple}or the model's own: --set model.sample_size=null.",
            )
        raise refused(self.place, self._guilty(fails, failure), self.config, f"cannot run: {failure}")

    @_silent()
    def keys_behind(self, tensor: str) -> list[str]:
        """Return the keys on which it depends whether the model has a tensor that its file lacks, or the other way."""
        wanted = tensor in self.stored

        def wrong(config: Config) -> str | None:
            built = self._build(config)
            return None if not isinstance(built, str) and (tensor in _shapes(built)) is wanted else tensor

        return self._guilty(wrong, tensor)

    @_silent()
    def shapes(self) -> TensorShapes:
        """Return the tensors that the model would have; none where it cannot be."""
        built = self._build(self.config)
        return {} if isinstance(built, str) else _shapes(built)

    def _check_shapes(self, own: TensorShapes) -> None:
        shared = sorted(own.keys() & self.stored.keys())
        other = [name for name in shared if own[name] != self.stored[name]]
        if not other:
            return
        right = set(shared).difference(other)
        name, seen = other[0], str(own[other[0]])
        sizes = [
            (made, held) for made, held in zip(own[name], self.stored[name], strict=False) if made != held
        ]

        def differs(config: Config) -> str | None:
            built = self._build(config)
            if isinstance(built, str):
                return seen
            made = _shapes(built)
            # who spoils another tensor does not heal this one
            heals = all(made.get(tensor) == self.stored[tensor] for tensor in (name, *right))
            return None if heals else str(made.get(name))

        more = f"; so it is with {len(other)} tensors" if len(other) > 1 else ""
        problem = f"makes '{name}' {[*own[name]]}, the weights hold {[*self.stored[name]]}{more}"
        raise refused(self.place, self._guilty(differs, seen, sizes), self.config, problem)

    def _build(self, config: Config) -> nn.Module | str:
        """Return the model without memory, or why it cannot be."""
        # constructors draw initial weights, and a check may not move torch's global generator
        tensors = len(self.stored)
        too_many = _TooMany(f"it would have more than twice the {tensors} tensors of its weights")
        with torch.random.fork_rng(devices=[]), _bounded(2 * tensors + _SPARE, too_many):
            try:
                with torch.device("meta"):
                    return self.make(dict(config))
            except _FAILURES:
                pass
            try:
                # a constructor may look at numbers of its own, which shapes alone have not
                with without_weights():
                    return self.make(dict(config))
            except _FAILURES as error:
                return _told(error)

    def _unbuilt(self, config: Config) -> str | None:
        built = self._build(config)
        return built if isinstance(built, str) else None

    def _failure(self, config: Config, family: Family) -> str | None:
        """Return why one step of a configuration fails."""
        built = self._build(config)
        if isinstance(built, str):
            return built
        try:
            _step(built, family, config)
        except ModelError as error:
            return error.message.removesuffix(".")
        except FAILURES as error:
            # what needs values cannot be told from shapes
            return None if isinstance(error, NotImplementedError) or "meta" in str(error) else _told(error)
        return None

    def _guilty(self, look: WhatIsWrong, seen: str, sizes: Sizes = ()) -> list[str]:
        """Return the keys to blame, as far as looks of bounded work tell."""
        most = _MOST_LOOKS * (len(self.stored) + _SPARE)
        with _bounded(most, WorkSpent(f"{most} parameters were made")):
            return guilty_keys(self.config, self.defaults, look, seen, sizes)


def _tells_its_call(family: Family, config: Config) -> bool:
    """Tell whether the configuration says how the model is called; for another one its pipeline does."""
    try:
        return family.describe is not None and family.describe(config, ()) is not None
    except ModelError:
        return False


def _told(error: Exception) -> str:
    if isinstance(error, _TooMany):
        return str(error)
    return f"{type(error).__name__}: {first_line(error)}"


@contextmanager
def _bounded(most: int, too_many: Exception) -> Iterator[None]:
    """Raise ``too_many`` in whoever makes more parameters than ``most`` inside the context."""
    made = 0

    def count(_module: nn.Module, _name: str, parameter: Any) -> None:
        nonlocal made
        made += parameter is not None
        if made > most:
            raise too_many

    handle = nn.modules.module.register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def _shapes(module: nn.Module) -> TensorShapes:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


@torch.no_grad()
def _step(module: nn.Module, family: Family, config: Config) -> None:
    """Take one step of shapes.

    Raises:
        ValueError: the output is not shaped like the state.
        ModelError: the configuration does not tell the call.
    """
    assert family.describe is not None
    shape = state_shape(config)
    call = family.describe(config, shape)
    inputs = {a.name: _empty(a.dtype, a.shape) for a in call.arguments}
    module.to("meta").eval()  # what a constructor made of numbers of its own is on the CPU
    with torch.device("meta"):
        output = run_call(module, call, _empty("float32", shape), _empty(call.timestep.dtype, ()), inputs)
    if tuple(output.shape) != (_ROWS, *shape):
        raise ValueError(f"of a state {[*shape]} it makes {[*output.shape[1:]]}")


def _empty(dtype: str, shape: tuple[int, ...]) -> Tensor:
    return torch.empty((_ROWS, *shape), dtype=getattr(torch, dtype), device="meta")
