"""Is each component of a pipeline what its files say? Asked before it is opened: libraries warn, or fail far away."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import nn

from gacq_deploy.artifact.records import SchedulerRecord
from gacq_deploy.errors import ArtifactError, ModelError
from gacq_deploy.models.blueprint import Blueprint
from gacq_deploy.models.configuration import check_numbers, check_values, refused
from gacq_deploy.models.folders import CONFIG, UNUSED, listed_components, stored_shapes
from gacq_deploy.models.loading import FAILURES, first_line, named_class, quiet_loading
from gacq_deploy.storage.documents import read_json
from gacq_deploy.storage.records import as_record

_RESTORE = "Restore the file from where the model came from."
_LONGEST_PROMPT = 1 << 20
"""Tokens; transformers writes a number of thirty digits where there is no limit."""
_NO_LIMIT = 10**29
_SMALLEST = torch.finfo(torch.float32).tiny
_MOST_ENTRIES = 1 << 24
_LAYER = re.compile(r"(?:^|\.)(\d+)\.")


def check_components(root: Path, index: Mapping[str, Any], *, denoiser: str | None = None) -> None:
    """Refuse a component whose configuration or vocabulary lies; nothing is loaded, and no memory taken.

    Args:
        root: the pipeline's folder.
        index: what its model_index.json says.
        denoiser: this component is not looked at: whoever loads it has done so.

    Raises:
        ArtifactError: with file, key and value.
        ModelError: weights are missing.
    """
    for name, (library, kind_name) in listed_components(index).items():
        folder = root / name
        if name in UNUSED or name == denoiser or kind_name is None or not folder.is_dir():
            continue
        if name.startswith("tokenizer"):
            _check_tokenizer(folder)
        kind = _kind(library, kind_name)
        if isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin):
            check_scheduler(kind, folder / "scheduler_config.json")
        elif isinstance(kind, type) and issubclass(kind, diffusers.ModelMixin):
            check_decoder(kind, folder)
        elif isinstance(kind, type) and issubclass(kind, nn.Module):
            _check_text_model(kind, folder)


def check_decoder(kind: Any, folder: Path) -> None:
    """Refuse a model of diffusers, a decoder as a rule, whose configuration is not that of its weights.

    Raises:
        ArtifactError: with file, key and value.
        ModelError: weights are missing.
    """
    config = read_json(folder / CONFIG, what="Model configuration", hint=_RESTORE, others=True)
    check_values(kind, config, folder / CONFIG)
    Blueprint.of_diffusers(kind, config, folder / CONFIG, stored_shapes(folder)).check()


def check_scheduler(kind: Any, place: Path) -> None:
    """Refuse a scheduler's configuration with a value that its class does not take.

    Raises:
        ArtifactError: with file, key and value.
    """
    if not place.is_file():
        return
    config = read_json(place, what="Scheduler configuration", hint=_RESTORE, others=True)
    check_values(kind, config, place)
    problem = trouble(kind, config)
    if problem is None:
        as_record(SchedulerRecord, config, where=f"Scheduler configuration {place}", hint=_RESTORE)
        return
    # who is guilty heals it by being left out
    keys = [k for k in sorted(config) if trouble(kind, {n: v for n, v in config.items() if n != k}) is None]
    raise refused(place, keys, config, f"cannot be: {problem}")


def trouble(kind: Any, config: Mapping[str, Any]) -> str | None:
    """Return why a scheduler cannot be made of a configuration, or what of its noise is no number; None: it is well."""
    scheduler, problem = _attempt(lambda: kind.from_config(dict(config)))
    if problem is not None:
        return problem
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if isinstance(alphas, torch.Tensor) and not bool(((alphas >= 0) & (alphas <= 1)).all()):
        return "its cumulative alphas are not all between 0 and 1"
    return None


def check_finite(module: nn.Module, place: str) -> None:
    """Refuse a loaded model of which a weight is missing or no number, or a whole matrix next to none.

    Args:
        module: as it was loaded.
        place: where it lies, for the message.

    Raises:
        ArtifactError: a weight holds NaN or Inf, or denormal numbers alone.
        ModelError: the files lack a weight, of which diffusers would only warn.
    """
    lacking = [name for name, value in module.state_dict().items() if value.is_meta]
    if lacking:
        raise _lacks(place, lacking)
    for name, value in module.state_dict().items():
        if not value.is_floating_point() or not value.numel():
            continue
        # the extremes carry NaN and Inf; a comparison of all values would make copies
        low, high = (float(extreme) for extreme in value.aminmax())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ArtifactError(
                f"{place}: weight '{name}' holds NaN or Inf.", "Restore the weights from their source."
            )
        largest = max(-low, high)
        if value.ndim > 1 and 0 < largest < _SMALLEST:
            raise ArtifactError(
                f"{place}: no number in weight '{name}' is larger than {largest:.3g}: all of it is denormal, which "
                "processors take for 0.",
                "Restore the weights from their source.",
            )


def _attempt(work: Callable[[], Any]) -> tuple[Any, str | None]:
    """Return what another library makes, or why it makes nothing."""
    try:
        with quiet_loading():
            return work(), None
    except FAILURES as error:
        return None, f"{type(error).__name__}: {first_line(error)}"


def _kind(library: Any, name: Any) -> Any:
    if library == "transformers" and find_spec("transformers") is not None:
        import transformers

        with quiet_loading():
            return getattr(transformers, str(name), None)
    return named_class(name) if library == "diffusers" else None


def _check_text_model(kind: Any, folder: Path) -> None:
    """Refuse a text encoder's configuration; of what its weights lack transformers would only warn."""
    place = folder / CONFIG
    config = read_json(place, what="Model configuration", hint=_RESTORE, others=True)
    configuration: Any = kind.config_class
    defaults = _attempt(lambda: configuration().to_dict())[0] or {}

    def make(values: dict[str, Any]) -> nn.Module:
        made: nn.Module = kind(configuration.from_dict(values))
        return made

    check_numbers(config, defaults, place)
    blueprint = Blueprint(kind, config, place, stored_shapes(folder, "model.safetensors"), make, defaults)
    blueprint.check()
    _check_depth(blueprint)
    _check_whole(kind, folder)


def _check_whole(kind: Any, folder: Path) -> None:
    """Refuse weights that lack a tensor: transformers, which alone knows what they call it, would draw its values.

    Nothing is read of the tensors: the model stays on torch's device ``meta``.
    """
    options = {"device_map": "meta", "local_files_only": True, "use_safetensors": True}
    opened, _ = _attempt(lambda: kind.from_pretrained(folder, output_loading_info=True, **options))
    if opened is None:
        return  # whoever opens it says why it cannot be
    _, found = opened
    if lacking := sorted(found["missing_keys"]):
        raise _lacks(folder, lacking)


def _lacks(place: object, tensors: Sequence[str]) -> ModelError:
    return ModelError(
        f"{place}: the weights lack tensor '{tensors[0]}' ({len(tensors)} in all).",
        "Restore the weights from their source: they do not belong to this config.json.",
    )


def _check_depth(blueprint: Blueprint) -> None:
    """Refuse a model of more layers than its weights have: the others would be random."""
    own, held = (max(_layers(names), default=-1) for names in (blueprint.shapes(), blueprint.stored))
    if own > held >= 0:
        lacking = next(name for name in blueprint.shapes() if own in _layers([name]))
        raise refused(
            blueprint.place,
            blueprint.keys_behind(lacking),
            blueprint.config,
            f"makes {own + 1} layers, the weights hold {held + 1}",
        )


def _layers(names: Any) -> Iterator[int]:
    """Return the first number in each name."""
    for name in names:
        if found := _LAYER.search(name):
            yield int(found.group(1))


def _check_tokenizer(folder: Path) -> None:
    place = folder / "tokenizer_config.json"
    if place.is_file():
        config = read_json(place, what="Tokenizer configuration", hint=_RESTORE, others=True)
        length = config.get("model_max_length")
        is_length = isinstance(length, int | float) and not isinstance(length, bool)
        if length is not None and not (is_length and (1 <= length <= _LONGEST_PROMPT or length >= _NO_LIMIT)):
            raise refused(place, ("model_max_length",), config, f"is no length from 1 to {_LONGEST_PROMPT}")
    for file in ("special_tokens_map.json", "added_tokens.json", "tokenizer.json"):
        if (folder / file).is_file():
            read_json(folder / file, what="Tokenizer", hint=_RESTORE, others=True)
    vocabulary = folder / "vocab.json"
    if vocabulary.is_file():
        _check_vocabulary(vocabulary)


def _check_vocabulary(place: Path) -> None:
    entries = read_json(place, what="Tokenizer vocabulary", hint=_RESTORE, others=True)
    if not entries:
        raise ArtifactError(f"{place} holds no entry.", _RESTORE)
    for token, number in entries.items():
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < _MOST_ENTRIES:
            raise ArtifactError(
                f"{place}: '{token}' is {number!r}, no number from 0 to {_MOST_ENTRIES - 1}.", _RESTORE
            )


def name_culprit(root: Path, index: Mapping[str, Any]) -> ModelError | None:
    """Return what is said of the first tokenizer that does not load, of a pipeline that cannot be opened."""
    for name, (library, kind_name) in listed_components(index).items():
        kind = _kind(library, kind_name) if name.startswith("tokenizer") and kind_name else None
        if kind is None:
            continue
        try:
            with quiet_loading():
                kind.from_pretrained(root / name, local_files_only=True)
        except Exception as error:  # noqa: BLE001 (of a vocabulary, tokenizers raises nothing narrower)
            return ModelError(f"Tokenizer {root / name} cannot be loaded: {first_line(error)}", _RESTORE)
    return None
