"""What does a pipeline see of a denoiser beside its call? The class it stands for, its output and its configuration."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Any

from diffusers import ModelMixin
from diffusers.configuration_utils import FrozenDict
from diffusers.utils.outputs import BaseOutput
from torch import Tensor

from gacq_deploy.artifact.call import CallRecord
from gacq_deploy.artifact.records import ModelRecord
from gacq_deploy.errors import ModelError
from gacq_deploy.models.base import with_classes
from gacq_deploy.models.loading import named_class
from gacq_deploy.models.source import family_of

_NULL_CLASSES = {"DiTTransformer2DModel": 1}
"""Rows of a label table behind the real classes, which no configuration tells."""


@dataclass
class DenoiserOutput(BaseOutput):
    """What a denoiser of an unknown class returns: ``sample`` ``[N, ...]``."""

    sample: Tensor


@dataclass(frozen=True)
class ModelFacade:
    """A denoiser's looks."""

    kind: type[Any] | None
    """Its class; None where that is not known."""
    call: CallRecord
    config: Any
    """As the model presents it: with every default, readable by key and attribute."""
    labels: Mapping[str, int]
    """Input name -> rows of its label table, null class included."""
    gives_variance: bool
    """Whether pipelines cut a learned variance off without asking the configuration."""
    attributes: Mapping[str, Any]
    """What pipelines read of the model itself."""

    def to_output(self, prediction: Tensor) -> Any:
        """Return the model's output class around a prediction: the one that its ``forward`` names."""
        kind = DenoiserOutput if self.kind is None else _output_class(self.kind)
        return kind(**{fields(kind)[0].name: prediction})


def find_class(family: str) -> type[Any] | None:
    """Return diffusers' class of denoisers of that name, None if it has none.

    It is imported when it is asked for: diffusers then looks for every library that it might use.
    """
    kind = named_class(family)
    return kind if isinstance(kind, type) and issubclass(kind, ModelMixin) else None


def make_facade(record: ModelRecord, config: Mapping[str, Any], kind: type[Any] | None = None) -> ModelFacade:
    """Return the looks of a calibrated model.

    Args:
        record: of the model that was calibrated.
        config: of the same model, as in its ``config.json``.
        kind: its class, where it is not one of diffusers.

    Raises:
        ModelError: configuration or class are another model's.
    """
    kind = kind or find_class(record.family)
    _check_names(record, config, kind)
    described = _described(record, config)
    call = record.call or described
    if call is None:
        raise ModelError(
            f"How {record.family} is called was not recorded.", "Run `gacq-deploy calibrate` again."
        )
    if described is not None:
        _check_conditioning(record, described)
    whole = _complete(config, kind, record.sample_shape[0])
    null = _NULL_CLASSES.get(record.family, 0)
    labels: dict[str, int] = {}
    for argument in () if described is None else described.arguments:
        if argument.num_classes:
            labels[argument.name] = argument.num_classes + null
    return ModelFacade(
        kind=kind,
        call=with_classes(call, record.conditioning),
        config=whole,
        labels=labels,
        gives_variance=bool(whole.get("learn_sigma")) and "out_channels" not in whole,
        attributes=_attributes(whole),
    )


def _output_class(kind: type[Any]) -> Any:
    forward = inspect.unwrap(kind.forward)
    known = [forward.__globals__.get(name) for name in forward.__code__.co_names]
    found = {k for k in known if isinstance(k, type) and issubclass(k, BaseOutput)}
    return found.pop() if len(found) == 1 else DenoiserOutput


def _complete(config: Mapping[str, Any], kind: type[Any] | None, channels: int) -> Any:
    """Return a configuration with the class's defaults.

    Of [noise, variance] only the noise was exported: a pipeline that expected both would split the noise itself.
    """
    parameters = () if kind is None else inspect.signature(kind.__init__).parameters.values()
    whole = {p.name: p.default for p in parameters if p.default is not p.empty} | dict(config)
    if whole.get("out_channels") == 2 * channels:
        whole["out_channels"] = channels
    return FrozenDict(whole)  # type: ignore[no-untyped-call] # of diffusers


def _attributes(config: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    heads, width = config.get("num_attention_heads"), config.get("attention_head_dim")
    if isinstance(heads, int):
        found["num_heads"] = heads  # HunyuanDiT makes its rotary positions from these two
        if isinstance(width, int):
            found["inner_dim"] = heads * width
    # SDXL looks up how wide the model wants its time ids
    if config.get("addition_embed_type") == "text_time":
        wide = config.get("projection_class_embeddings_input_dim")
        found["add_embedding"] = SimpleNamespace(linear_1=SimpleNamespace(in_features=wide))
    return found


def _described(record: ModelRecord, config: Mapping[str, Any]) -> CallRecord | None:
    """Return the call as the configuration tells it, None where it does not."""
    describe = family_of(record.family).describe
    if describe is None:
        return None
    try:
        return describe(config, record.sample_shape)
    except ModelError:
        if record.call is None:
            raise
        return None  # what no configuration can tell was recorded


def _hint(record: ModelRecord) -> str:
    return (
        f"Pass the configuration of the model that was calibrated ({record.source}): config=pipe.unet.config."
    )


def _check_names(record: ModelRecord, config: Mapping[str, Any], kind: type[Any] | None) -> None:
    name = config.get("_class_name", record.family)
    if name != record.family:
        raise ModelError(
            f"The configuration is that of a {name}, the engine is a {record.family}.", _hint(record)
        )
    if kind is not None and kind.__name__ != record.family:
        raise ModelError(
            f"The denoiser to replace is a {kind.__name__}, the engine is a {record.family}.",
            f"Replace the denoiser of the pipeline that was calibrated ({record.source}).",
        )
    taken, shape = config.get("in_channels"), record.sample_shape
    places = shape[:1] if record.call is None else shape  # packed latents have their channels last
    if taken is not None and taken not in places:
        raise ModelError(
            f"The configuration takes {taken} channels, the engine {' x '.join(map(str, places))}.",
            _hint(record),
        )


def _check_conditioning(record: ModelRecord, described: CallRecord) -> None:
    """Compare the inputs and their widths; the length of a text is the pipeline's affair."""
    ours, theirs = _widths(described.conditioning()), _widths(record.conditioning)
    if ours != theirs:
        raise ModelError(
            f"The configuration's conditioning is {ours or 'none'}, the engine's {theirs or 'none'}.",
            _hint(record),
        )


def _widths(conditioning: Mapping[str, Any]) -> dict[str, list[int]]:
    return {name: list(info["shape"])[-1:] for name, info in conditioning.items()}
