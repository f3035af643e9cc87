"""Is each value of a configuration of the type that its class declares, and of a size that a model can have?"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gacq_deploy.errors import ArtifactError, ModelError
from gacq_deploy.recipe.sections import SAMPLE_SIZE_MAX
from gacq_deploy.sampling.timesteps import TIMESTEPS_MAX

_LARGEST = 10**8
"""No size, count or other number of a configuration is beyond."""
_COUNTS = frozenset(
    {
        "num_train_timesteps",
        "num_hidden_layers",
        "num_layers",
        "num_attention_heads",
        "num_heads",
        "hidden_size",
        "intermediate_size",
        "vocab_size",
        "d_model",
        "d_ff",
        "d_kv",
    }
)
"""Keys of which there has to be at least one, whatever a class makes of none."""
_ANY_SIGN = ("_id", "_ids", "_index")
"""Endings of keys that count nothing: transformers writes -1 for none."""
_SHOWN = 60
"""Characters of a value in a message."""


def check_values(kind: type[Any], config: Mapping[str, Any], place: Path) -> None:
    """Refuse a value that is of another type than its class declares, or that no size or number can be.

    Args:
        kind: a class of diffusers that is made from a configuration.
        config: as its JSON file holds it.
        place: that file.

    Raises:
        ArtifactError: with file, key and value.
    """
    hints = _hints(kind)
    defaults = defaults_of(kind)
    for key in config.keys() & defaults.keys():
        hint = hints.get(key, Any)
        # some classes declare another type than that of their own default
        if not _fits(config[key], hint) and type(config[key]) is not type(defaults[key]):
            raise refused(place, (key,), config, f"is no {_spelled(hint)}, as {kind.__name__} takes it")
    check_numbers(config, defaults, place)


def check_numbers(config: Mapping[str, Any], defaults: Mapping[str, Any], place: Path) -> None:
    """Refuse a number that no size can be, and an empty list where there has to be something.

    Args:
        config: as its JSON file holds it.
        defaults: key -> what its class takes where nothing is said: 0, a negative number and an empty list may stand
            only where they can stand by themselves.
        place: that file.

    Raises:
        ArtifactError: with file, key and value.
    """
    for key in sorted(config.keys() & defaults.keys()):
        problem = None if config[key] == defaults[key] else _problem(key, config[key], defaults[key])
        if problem is not None:
            raise refused(place, (key,), config, problem)


def refused(place: Path, keys: Sequence[str], config: Mapping[str, Any], problem: str) -> ArtifactError:
    """Return what is said of a configuration, with file, keys and values."""
    return ArtifactError(
        f"{place}: {spell_out(keys, config) or 'what it says'} {problem}.",
        "Restore the file from where the model came from: it belongs to these weights.",
    )


def spell_out(keys: Sequence[str], config: Mapping[str, Any]) -> str:
    """Return keys with their values, for a message."""
    return ", ".join(f"{key} = {_shortened(repr(config[key]))}" for key in keys)


def defaults_of(kind: type[Any]) -> dict[str, Any]:
    """Return the keys of a class of diffusers, each with what it takes where nothing is said."""
    named = inspect.signature(kind.__init__).parameters.items()
    return {key: p.default for key, p in named if key != "self" and p.kind is not p.VAR_KEYWORD}


def state_shape(config: Mapping[str, Any], asked_size: int | None = None) -> tuple[int, ...]:
    """Return the shape ``(C, H, W)`` of a state.

    Args:
        config: of the denoiser.
        asked_size: height and width that the recipe asks for, in place of the configuration's.

    Raises:
        ModelError: neither the configuration nor the recipe says its size.
    """
    size = asked_size or config.get("sample_size")
    if size is None:
        raise ModelError(
            "The model's configuration has no sample_size.", "Set model.sample_size in the recipe."
        )
    height, width = (size, size) if isinstance(size, int) else size
    return int(config["in_channels"]), int(height), int(width)


def _hints(kind: type[Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(inspect.unwrap(kind.__init__))
    except (NameError, TypeError):
        return {}


def _fits(value: Any, hint: Any) -> bool:
    """Tell whether a JSON value is of a declared type; null, and what is not declared plainly, is left to the class."""
    if value is None:
        return True
    members = typing.get_args(hint)
    match typing.get_origin(hint) or hint:
        case typing.Union | types.UnionType:
            return _fits_any(value, members)
        case typing.Literal:
            return value in members
        case kind if kind in (tuple, list):
            kinds = [member for member in members if member is not Ellipsis]
            return isinstance(value, list | tuple) and all(_fits_any(part, kinds) for part in value)
        case kind:
            return _is_plain(value, kind)


def _fits_any(value: Any, kinds: Sequence[Any]) -> bool:
    return not kinds or any(_fits(value, kind) for kind in kinds)


def _is_plain(value: Any, kind: Any) -> bool:
    """Tell whether a value is of a plain type: 2.0 is a whole number, and true is none."""
    if kind in (int, float):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and (kind is float or not isinstance(value, float) or value.is_integer())
    if kind is np.ndarray:
        return False  # JSON holds none
    return isinstance(value, kind) if kind in (bool, str, type(None)) else True


def _problem(key: str, value: Any, default: Any) -> str | None:
    if value in ([], ()) and isinstance(default, list | tuple) and default:
        return "is empty"
    if key == "sample_size" and not _is_size(value):
        return f"is no height and width from 1 to {SAMPLE_SIZE_MAX}"
    if key in _COUNTS and value == 0:
        return "has to be 1 or more"
    if key == "num_train_timesteps" and isinstance(value, int) and value > TIMESTEPS_MAX:
        return f"is beyond {TIMESTEPS_MAX}"
    numbers = _numbers(value)
    if not all(abs(number) <= _LARGEST for number in numbers):  # so written, NaN is none either
        return f"is beyond {_LARGEST}, more than any model has"
    may_be_negative = key.endswith(_ANY_SIGN) or any(number < 0 for number in _numbers(default))
    checked = [n for n in numbers if isinstance(n, int) or key.endswith("eps")]  # fractions shift and scale
    return None if may_be_negative or all(number >= 0 for number in checked) else "is negative"


def _is_size(value: Any) -> bool:
    sides = value if isinstance(value, list | tuple) else [value, value]
    return value is None or (len(sides) == 2 and all(0 < side <= SAMPLE_SIZE_MAX for side in sides))


def _numbers(value: Any) -> list[int | float]:
    """Return a number alone, or those in lists."""
    if isinstance(value, list | tuple):
        return [number for part in value for number in _numbers(part)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _spelled(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
