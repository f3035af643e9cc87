"""What may a LoRA's file tell peft to do? What plain pairs of factors need: peft would import modules by name, too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gacq_deploy.errors import ModelError
from gacq_deploy.storage.documents import shown
from gacq_deploy.storage.records import first_fault

FUSE_IT = (
    "Fuse it with what trained it, save the pipeline (pipe.save_pretrained) and pass that folder as --model."
)
_Number = Annotated[float, Field(gt=-1e6, lt=1e6)]
_Rank = Annotated[int, Field(ge=1, le=1 << 16)]


class PairSettings(BaseModel):
    """Settings of peft's ``LoraConfig`` that a file may choose.

    The others move weights before the factors are added, import what they name, or add what is no pair of factors.
    """

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)

    r: _Rank = 1
    lora_alpha: _Number = 1
    rank_pattern: dict[str, _Rank] = {}
    alpha_pattern: dict[str, _Number] = {}
    use_rslora: bool = False
    target_modules: str | list[str] | None = None
    exclude_modules: str | list[str] | None = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: str | list[str] | None = None
    lora_dropout: _Number = 0
    fan_in_fan_out: bool = False
    # of training: the factors are in the file
    init_lora_weights: bool | Literal["gaussian"] = True
    bias: Literal["none"] = "none"


_TOLD = {
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
}  # fmt: skip
"""Where an adapter came from, which loading it heeds not."""


def check_settings(metadata: Any, component: str, path: Path) -> None:
    """Refuse a file that asks for more than plain pairs of factors.

    Args:
        metadata: of the file, ``component.setting`` -> value, as decoded from JSON; None where it has none.
        component: of the pipeline: its denoiser, or a text encoder.
        path: the file.

    Raises:
        ModelError: a setting is of another type, or one that no plain pair has.
    """
    from peft import LoraConfig

    if metadata is None:
        return
    if not isinstance(metadata, Mapping):
        raise ModelError(f"LoRA {path}: its metadata are no JSON object.", "Save it again.")
    prefix = f"{component}."
    settings = {k.removeprefix(prefix): v for k, v in metadata.items() if k.startswith(prefix)}
    try:
        PairSettings.model_validate(settings)
    except ValidationError as error:
        said = f"LoRA {path}: its metadata say {prefix}{first_fault(error)}."
        raise ModelError(said, "Save it again.") from error
    usual: dict[str, Any] = LoraConfig().to_dict()  # type: ignore[no-untyped-call]
    for name, value in settings.items():
        # a newer peft may write what this one has no word for: off, it asks for nothing
        if name not in PairSettings.model_fields and name not in _TOLD and value and value != usual.get(name):
            asked = f"'{shown(name)}' = {shown(repr(value))}"
            raise ModelError(
                f"LoRA {path}: its metadata ask for {asked}: that is no plain pair of factors.", FUSE_IT
            )
