"""Models of published shape are the published ones, and their runs hold what calibration would leave."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import SD3Transformer2DModel, UNet2DConditionModel

from benchmarks import large_models
from benchmarks.large_export import make_run
from benchmarks.large_models import FLOW, MODELS, SCALED_LINEAR, LargeModel
from gacq_deploy.artifact.artifact import load_artifact
from gacq_deploy.artifact.call import ArgumentRecord, CallRecord, StateRecord, TimestepRecord
from gacq_deploy.models.source import load_float_denoiser
from tests.support.models.architectures import SD_UNET
from tests.support.models.joint_transformers import POOLED, SD3, TEXT, TOKENS
from tests.support.models.tiny import nearest_params

TINY_CALL = CallRecord(
    state=StateRecord(path=("hidden_states",), shape=(4, 8, 8)),
    timestep=TimestepRecord(dtype="float32"),
    arguments=(
        ArgumentRecord(
            name="encoder_hidden_states",
            path=("encoder_hidden_states",),
            dtype="float32",
            shape=(TOKENS, TEXT),
        ),
        ArgumentRecord(
            name="pooled_projections", path=("pooled_projections",), dtype="float32", shape=(POOLED,)
        ),
    ),
    constants={"return_dict": False},
)
TINY = {
    "unet": LargeModel(UNet2DConditionModel, SD_UNET, "sd15-w8a8", SCALED_LINEAR, (4, 8, 8)),
    "joint": LargeModel(SD3Transformer2DModel, SD3, "sd3-w8a8", FLOW, (4, 4, 4), TINY_CALL),
}


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("middle", 314_140_228),
        ("sd15", 859_520_964),
        ("sdxl", 2_567_463_684),
        ("sd3", 2_028_328_000),
        ("flux", 11_901_408_320),
    ],
)
def test_a_configuration_has_as_many_parameters_as_its_model(name: str, parameters: int) -> None:
    with torch.device("meta"):
        module = MODELS[name].kind(**MODELS[name].config)
    assert sum(p.numel() for p in module.parameters()) == parameters


@pytest.mark.parametrize(("name", "half"), [("unet", True), ("joint", False)])
def test_the_run_of_a_model_holds_nearest_codes_and_the_models_own_answers(
    name: str, half: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large_models, "SHARD", 2**20)
    monkeypatch.setitem(MODELS, name, TINY[name])
    run = make_run(tmp_path, name, half=half, rows=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "run"]
    artifact = load_artifact(run.artifact)
    denoiser = load_float_denoiser(run.load_recipe().model, artifact.model)
    assert denoiser.record.weights_sha256 == artifact.model.weights_sha256
    assert denoiser.record.sample_shape == artifact.model.sample_shape
    for entry in artifact.plan.of_role("weight"):
        weight = denoiser.module.get_submodule(entry.site.module).get_parameter("weight").numpy()
        if half:
            np.testing.assert_array_equal(weight, weight.astype(np.float16))
        expected, found = nearest_params(weight), artifact.params[entry.site]
        np.testing.assert_array_equal(found.codes, expected.codes)
    assert artifact.probe is not None
    assert artifact.probe.outputs["float"].shape == (2, *artifact.model.sample_shape)
