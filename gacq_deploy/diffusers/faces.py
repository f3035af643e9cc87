"""What does a pipeline see of a denoiser beside its call? The class it stands for, its output and its configuration."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import diffusers
from diffusers.configuration_utils import FrozenDict

from gacq_deploy.artifact import ModelRecord
from gacq_deploy.errors import ModelError
from gacq_deploy.models.source import FAMILIES


@dataclass(frozen=True)
class Face:
    """The class of diffusers that an engine stands for.

    ``answer`` names its output class; ``null_classes`` counts the rows of its label table behind the real classes.
    """

    name: str
    answer: str
    null_classes: int = 0

    @property
    def model(self) -> Any:
        """The class, imported when it is asked for: diffusers then looks for every library that it might use."""
        return getattr(diffusers, self.name)

    @property
    def output(self) -> Any:
        """What the model returns."""
        return getattr(import_module(self.model.__module__), self.answer)

    def signature(self) -> inspect.Signature:
        """Return how the model is called, without ``self``."""
        whole = inspect.signature(self.model.forward)
        return whole.replace(parameters=list(whole.parameters.values())[1:])

    def label_tables(self, config: Mapping[str, Any]) -> dict[str, int]:
        """Return input name -> rows of its label table, null class included."""
        describe = FAMILIES[self.name].describe
        described = {} if describe is None else describe(config, ()).conditioning()
        return {
            name: int(info["num_classes"]) + self.null_classes
            for name, info in described.items()
            if info.get("num_classes")
        }

    def complete(self, config: Mapping[str, Any], channels: int | None) -> Any:
        """Return a configuration as the model presents it: with every default, readable by key and attribute.

        ``out_channels`` is what the engine gives: of DiT's [noise, variance] only the noise was exported, and a
        pipeline that was told otherwise would split the noise itself.
        """
        parameters = inspect.signature(self.model.__init__).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        given = {} if channels is None or "out_channels" not in defaults else {"out_channels": channels}
        return FrozenDict({**defaults, **config, **given})  # type: ignore[no-untyped-call] # of diffusers


FACES: dict[str, Face] = {
    face.name: face
    for face in (
        Face("UNet2DModel", "UNet2DOutput"),
        Face("UNet2DConditionModel", "UNet2DConditionOutput"),
        Face("DiTTransformer2DModel", "Transformer2DModelOutput", null_classes=1),
    )
}


def check_config(config: Mapping[str, Any], record: ModelRecord) -> None:
    """Refuse a configuration that is not the calibrated model's.

    Raises:
        ModelError: it is of another class, or takes other inputs; says which.
    """
    hint = (
        f"Pass the configuration of the model that was calibrated ({record.source}): config=pipe.unet.config."
    )
    name = config.get("_class_name", record.family)
    if name != record.family:
        raise ModelError(f"The configuration is that of a {name}, the engine is a {record.family}.", hint)
    taken = config.get("in_channels", record.sample_shape[0])
    if taken != record.sample_shape[0]:
        raise ModelError(
            f"The configuration takes {taken} channels, the engine {record.sample_shape[0]}.", hint
        )
    describe = FAMILIES[record.family].describe
    assert describe is not None
    described = {k: v["shape"] for k, v in describe(config, ()).conditioning().items()}
    exported = {k: list(v["shape"]) for k, v in record.conditioning.items()}
    if described != exported:
        raise ModelError(
            f"The configuration's conditioning is {described or 'none'}, the engine's {exported or 'none'}.",
            hint,
        )
