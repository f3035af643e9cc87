"""What stands in the manifest is named as people name it."""

from __future__ import annotations

import pytest

from gacq_deploy.artifact.records import ModelRecord


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("builtin:fashion16", "fashion16"),
        ("/models/my ddpm", "my ddpm"),
        ("/models/my ddpm/unet", "my ddpm"),
        ("runs/mine/model", "mine"),
        ("owner/pixart-sigma", "pixart-sigma"),
        ("python:shop.models:make_pipeline", "make_pipeline"),
        ("unet", "unet"),
        (".", "."),
    ],
)
def test_a_model_is_called_by_its_folder_or_its_name(source: str, name: str) -> None:
    record = ModelRecord(
        source=source, revision=None, family="UNet2DModel", weights_sha256="0", prediction_type="epsilon",
        scheduler={}, sample_shape=(3, 8, 8), conditioning={},
    )  # fmt: skip
    assert record.name == name
