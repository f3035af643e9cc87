"""A module without weights that looks and answers like the denoiser it stands for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from gacq_deploy.artifact.records import ModelRecord
from gacq_deploy.backends.base import Engine, Feeds, TensorInfo
from gacq_deploy.backends.function import FunctionEngine
from gacq_deploy.backends.trt.engine import TrtEngine
from gacq_deploy.diffusers.denoiser import EngineDenoiser
from gacq_deploy.engines.open import open_engine
from gacq_deploy.errors import EngineError, ModelError, UsageError
from gacq_deploy.models.source import FAMILIES
from tests.support.graphs.onnx_graphs import CLASSES, SAMPLE_SHAPE, denoiser_graph, feeds, reference
from tests.support.models.architectures import DIT, SD_UNET, SDXL_UNET
from tests.support.models.tiny import SCHEDULER, UNET_CONFIG
from tests.support.trt.fake_cuda import FakeDriver, fake_device, fake_driver
from tests.support.trt.fake_trt import denoiser_profile, fake_trt, write_plan

LABELLED = UNET_CONFIG | {"in_channels": 4, "out_channels": 4, "num_class_embeds": CLASSES}
CONFIGS: dict[str, dict[str, Any]] = {
    "UNet2DModel": LABELLED,
    "UNet2DConditionModel": SDXL_UNET,
    "DiTTransformer2DModel": DIT,
}


def record_of(family: str, config: dict[str, Any]) -> ModelRecord:
    shape = (config["in_channels"], 8, 8)
    describe = FAMILIES[family].describe
    assert describe is not None
    return ModelRecord(
        source="tiny",
        revision=None,
        family=family,
        weights_sha256="0",
        prediction_type="epsilon",
        scheduler=SCHEDULER,
        sample_shape=shape,
        conditioning=describe(config, shape).conditioning(),
    )


def engine_of(record: ModelRecord, *, calls: list[int] | None = None, spoil: bool = False) -> Engine:
    def function(given: Feeds) -> dict[str, Any]:
        if calls is not None:
            calls.append(len(given["sample"]))
        output = given["sample"] * np.float32(0.5)
        if spoil:
            output[-1] = np.inf
        return {"output": output}

    state = TensorInfo("sample", "float32", (None, *record.sample_shape))
    conditioning = (
        TensorInfo(k, str(v["dtype"]), (None, *v["shape"])) for k, v in record.conditioning.items()
    )
    output = TensorInfo("output", "float32", state.shape)
    return FunctionEngine(
        function, (state, TensorInfo("timestep", "int64", (None,)), *conditioning), (output,), "halves"
    )


def denoiser_of(family: str, **options: Any) -> EngineDenoiser:
    config = CONFIGS[family]
    record = record_of(family, config)
    return EngineDenoiser(engine_of(record, **options), record, config)


def call(denoiser: EngineDenoiser, rows: int = 2, **more: Any) -> Any:
    given = feeds(rows)
    labels = torch.from_numpy(given["class_labels"])
    return denoiser(
        torch.from_numpy(given["sample"]), torch.from_numpy(given["timestep"]), class_labels=labels, **more
    )


@pytest.fixture
def driver() -> Iterator[FakeDriver]:
    with fake_driver() as driver:
        yield driver


@pytest.mark.parametrize("family", CONFIGS)
def test_presents_every_setting_of_the_model_it_stands_for(family: str) -> None:
    with torch.device("meta"):
        model = getattr(diffusers, family)(**CONFIGS[family])
    ours = denoiser_of(family).config
    for key, value in model.config.items():
        if key != "out_channels" and not key.startswith("_"):
            assert ours[key] == value, key
            assert getattr(ours, key) == value, key
    assert ours.out_channels == ours.in_channels == 4  # of a learned variance only the noise was exported
    if family == "UNet2DConditionModel":
        assert (
            denoiser_of(family).add_embedding.linear_1.in_features == model.add_embedding.linear_1.in_features
        )


def test_only_sdxl_has_an_added_embedding() -> None:
    assert not hasattr(denoiser_of("DiTTransformer2DModel"), "add_embedding")


@pytest.mark.parametrize("family", ["UNet2DModel", "DiTTransformer2DModel"])
def test_answers_in_the_models_own_form(family: str) -> None:
    denoiser = denoiser_of(family)
    answer = call(denoiser)
    plain = call(denoiser, return_dict=False)
    assert isinstance(answer, diffusers.utils.BaseOutput)
    assert type(answer).__name__ == {"UNet2DModel": "UNet2DOutput"}.get(family, "Transformer2DModelOutput")
    assert isinstance(plain, tuple)
    assert torch.equal(answer.sample, plain[0])
    assert torch.equal(answer.sample, torch.from_numpy(feeds(2)["sample"]) * 0.5)


def test_follows_the_pipeline_and_answers_in_the_states_type() -> None:
    denoiser = denoiser_of("UNet2DModel")
    assert (denoiser.device.type, denoiser.dtype, denoiser.in_channels) == ("cpu", torch.float32, 4)
    assert denoiser.to(torch.float16) is denoiser
    assert denoiser.dtype == torch.float16
    assert denoiser.to("meta").device.type == "meta"
    state = torch.ones(2, 4, 8, 8, dtype=torch.float16)
    answer = denoiser(state, 3, torch.tensor([0, 1])).sample
    assert (answer.dtype, answer.device.type) == (torch.float16, "cpu")
    assert not denoiser.state_dict()
    assert not list(denoiser.parameters())


@pytest.mark.parametrize(("rows", "fed"), [(1, [2]), (2, [2]), (5, [5])])
def test_no_row_runs_alone(rows: int, fed: list[int]) -> None:
    calls: list[int] = []
    assert call(denoiser_of("UNet2DModel", calls=calls), rows).sample.shape == (rows, *SAMPLE_SHAPE)
    assert calls == fed


@pytest.mark.parametrize("name", ["ort-cpu", "openvino"])
def test_a_row_does_not_depend_on_its_batch(name: str) -> None:
    record = record_of("UNet2DModel", LABELLED)
    model = denoiser_graph(quantized=True).SerializeToString()
    with EngineDenoiser(open_engine(name, model, threads=1), record, LABELLED) as denoiser:
        together = call(denoiser, 5).sample
        given = {k: torch.from_numpy(v) for k, v in feeds(5).items()}
        for row in range(5):
            alone = denoiser(*(given[k][row : row + 1] for k in ("sample", "timestep", "class_labels")))
            assert torch.equal(alone.sample, together[row : row + 1])


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 9])
def test_a_plan_gets_no_more_rows_than_a_profile_takes(driver: FakeDriver, tmp_path: Path, rows: int) -> None:
    profiles = [denoiser_profile(2, 2, 2), denoiser_profile(3, 4, 4)]
    plan = write_plan(tmp_path / "engine.plan", profiles=profiles)
    engine = TrtEngine(plan, library=fake_trt(driver), device=fake_device(driver))
    with EngineDenoiser(engine, record_of("UNet2DModel", LABELLED), LABELLED) as denoiser:
        np.testing.assert_allclose(call(denoiser, rows).sample.numpy(), reference(feeds(rows)), atol=2e-6)
    assert not driver.misuse


def test_a_closed_denoiser_does_not_run() -> None:
    with denoiser_of("UNet2DModel") as denoiser:
        call(denoiser)
    denoiser.close()
    with pytest.raises(EngineError, match="closed"):
        call(denoiser)


def test_a_prediction_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(EngineError, match=r"halves: the prediction is not finite at timestep \d+, row 1"):
        call(denoiser_of("UNet2DModel", spoil=True))


def test_a_state_of_another_size_is_an_error() -> None:
    with pytest.raises(EngineError, match=r"'sample' has shape \[2, 4, 9, 9\]"):
        denoiser_of("UNet2DModel")(torch.zeros(2, 4, 9, 9), 3, torch.tensor([0, 1]))


def test_the_label_table_counts_dits_null_class() -> None:
    denoiser = denoiser_of("DiTTransformer2DModel")
    denoiser(torch.zeros(2, 4, 8, 8), 3, torch.tensor([0, 10]))
    with pytest.raises(UsageError, match="Label 11"):
        denoiser(torch.zeros(2, 4, 8, 8), 3, torch.tensor([0, 11]))


@pytest.mark.parametrize(
    ("family", "config", "message"),
    [
        ("UNet2DModel", {"_class_name": "UNet2DConditionModel"}, "that of a UNet2DConditionModel"),
        ("UNet2DModel", LABELLED | {"in_channels": 3}, "takes 3 channels, the engine 4"),
        ("UNet2DModel", UNET_CONFIG | {"in_channels": 4}, "conditioning is none"),
        ("UNet2DConditionModel", SD_UNET, "conditioning is"),
    ],
)
def test_the_configuration_of_another_model_is_refused(
    family: str, config: dict[str, Any], message: str
) -> None:
    record = record_of(family, CONFIGS[family])
    with pytest.raises(ModelError, match=message):
        EngineDenoiser(engine_of(record), record, config)
