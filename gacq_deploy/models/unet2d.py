"""How is diffusers' UNet2DModel called? Unconditional, or with class labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gacq_deploy.artifact.call import ArgumentRecord, CallRecord, StateRecord
from gacq_deploy.errors import ModelError
from gacq_deploy.models.base import Family


def class_labels(count: int) -> ArgumentRecord:
    """Return the argument of a class table."""
    return ArgumentRecord(
        name="class_labels", path=("class_labels",), dtype="int64", shape=(), num_classes=count
    )


def _describe(config: Mapping[str, Any], shape: tuple[int, ...]) -> CallRecord:
    embed_type, classes = config.get("class_embed_type"), config.get("num_class_embeds")
    if embed_type is not None:
        raise ModelError(
            f"UNet2DModel with class_embed_type={embed_type!r} is not supported.",
            "Supported: no classes, or a class table (num_class_embeds).",
        )
    return CallRecord(
        state=StateRecord(shape=shape),
        arguments=() if classes is None else (class_labels(int(classes)),),
        constants={"return_dict": False},
    )


def halvings(config: Mapping[str, Any]) -> int:
    """Return what height and width of a UNet must be multiples of: every level but the last halves them."""
    return int(2 ** (len(config["block_out_channels"]) - 1))


UNET2D = Family(
    name="UNet2DModel",
    describe=_describe,
    size_multiple=halvings,
)
