"""Can a model be what its configuration says? Asked of its class and the weights' headers, while it costs no memory.

It is built on torch's device ``meta``, where a tensor is its shape alone, and takes a step there. What fails, and what
has other shapes than the file of weights, is laid at the door of a key: the one without whose value it would not be so.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gacq_deploy.errors import ModelError, RecipeError
from gacq_deploy.models.base import Config, Family, run_call
from gacq_deploy.models.configuration import defaults_of, refused, state_shape
from gacq_deploy.models.half_storage import without_weights
from gacq_deploy.models.loading import FAILURES, first_line, quiet_loading

_ROWS = 2
_USUAL_SIZE = 64
"""Every level of a UNet can halve it."""
_SPARE = 64
"""Parameters that a model may have beyond twice those of its file: a class may share or rename some."""

TensorShapes = Mapping[str, tuple[int, ...]]
"""Tensor name -> shape."""
_Look = Callable[[Config], str | None]
"""What is wrong with a model of this configuration; None: nothing."""


_FAILURES: tuple[type[Exception], ...] = (*FAILURES, MemoryError)


class _TooMany(RuntimeError):
    """A model grows past what its file of weights could fill."""


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

    def keys_behind(self, tensor: str) -> list[str]:
        """Return the keys on which it depends whether the model has a tensor that its file lacks, or the other way."""
        wanted = tensor in self.stored

        def wrong(config: Config) -> str | None:
            built = self._build(config)
            return None if not isinstance(built, str) and (tensor in _shapes(built)) is wanted else tensor

        return self._guilty(wrong, tensor)

    def shapes(self) -> TensorShapes:
        """Return the tensors that the model would have; none where it cannot be."""
        built = self._build(self.config)
        return {} if isinstance(built, str) else _shapes(built)

    def _check_shapes(self, own: TensorShapes) -> None:
        other = [name for name in sorted(own.keys() & self.stored.keys()) if own[name] != self.stored[name]]
        if not other:
            return
        name, seen = other[0], str(own[other[0]])

        def differs(config: Config) -> str | None:
            built = self._build(config)
            made = own[name] if isinstance(built, str) else _shapes(built).get(name)
            return None if made == self.stored[name] else str(made)

        more = f"; so it is with {len(other)} tensors" if len(other) > 1 else ""
        problem = f"makes '{name}' {[*own[name]]}, the weights hold {[*self.stored[name]]}{more}"
        raise refused(self.place, self._guilty(differs, seen), self.config, problem)

    def _build(self, config: Config) -> nn.Module | str:
        """Return the model without memory, or why it cannot be."""
        # constructors draw initial weights, and a check may not move torch's global generator
        with _silent(), torch.random.fork_rng(devices=[]), _bounded(len(self.stored)):
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

    def _guilty(self, look: _Look, seen: str) -> list[str]:
        """Return the keys without whose values all would be well, or else those without which it looks different."""
        change: dict[bool, list[str]] = {False: [], True: []}
        # who lies rarely says what the class itself would have said
        for usual in (False, True):
            heal: list[str] = []
            for key in sorted(self.config.keys() & self.defaults.keys()):
                default = self.defaults[key]
                if _is_same(self.config[key], default) is not usual:
                    continue
                looks = self._looks(look, key, default)
                if None in looks:
                    heal.append(key)
                elif any(shown != seen for shown in looks):
                    change[usual].append(key)
            if heal:
                return heal
        return change[False] or change[True]

    def _looks(self, look: _Look, key: str, default: Any) -> list[str | None]:
        """Return what is seen with other values of a key, up to one with which all is well."""
        looks: list[str | None] = []
        for other in _others(self.config[key], default):
            looks.append(look({**self.config, key: other}))
            if looks[-1] is None:
                break
        return looks


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
def _silent() -> Iterator[None]:
    with warnings.catch_warnings(), quiet_loading():
        warnings.simplefilter("ignore")  # torch of tensors without elements
        yield


@contextmanager
def _bounded(tensors: int) -> Iterator[None]:
    """Stop whoever makes more parameters inside the context than a file of so many tensors could fill."""
    made = 0

    def count(_module: nn.Module, _name: str, parameter: Any) -> None:
        nonlocal made
        made += parameter is not None
        if made > 2 * tensors + _SPARE:
            raise _TooMany(f"it would have more than twice the {tensors} tensors of its weights")

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
    with _silent(), torch.device("meta"):
        output = run_call(module, call, _empty("float32", shape), _empty(call.timestep.dtype, ()), inputs)
    if tuple(output.shape) != (_ROWS, *shape):
        raise ValueError(f"of a state {[*shape]} it makes {[*output.shape[1:]]}")


def _empty(dtype: str, shape: tuple[int, ...]) -> Tensor:
    return torch.empty((_ROWS, *shape), dtype=getattr(torch, dtype), device="meta")


def _is_same(value: Any, default: Any) -> bool:
    """Tell whether a value is the class's own; in JSON a tuple is a list."""
    return bool(
        value == (list(default) if isinstance(value, list) and isinstance(default, tuple) else default)
    )


def _others(value: Any, default: Any) -> list[Any]:
    """Return values that could stand in a key's place."""
    others: list[Any] = [] if default is inspect.Parameter.empty else [default]
    if isinstance(value, bool):
        others.append(not value)
    elif isinstance(value, int | float):
        others += [1, _USUAL_SIZE, value + 1]
    elif value is None:
        others.append(1)
    elif isinstance(value, list | tuple) and value:
        others += [[*value, value[-1]], [*value[:-1]], *_scaled(value)]
    return [other for other in others if other != value or type(other) is not type(value)]


def _scaled(values: Sequence[Any]) -> list[list[int]]:
    """Return half and twice a list of whole numbers."""
    if not all(isinstance(value, int) for value in values):
        return []
    return [[value // 2 for value in values], [2 * value for value in values]]
