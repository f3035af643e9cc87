"""Any recorded pipeline makes the same images with an engine in its denoiser's place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging

from gacq_deploy.backends.base import Feeds, TensorInfo
from gacq_deploy.backends.function import FunctionEngine
from gacq_deploy.diffusers.denoiser import EngineDenoiser
from gacq_deploy.diffusers.model_facade import make_facade
from gacq_deploy.errors import ModelError, UsageError
from gacq_deploy.models.base import Denoiser
from gacq_deploy.models.call_recorder import record_call
from gacq_deploy.models.pipelines import open_pipeline
from gacq_deploy.models.source import find_source, load_module, make_denoiser
from gacq_deploy.recipe.sections import ModelSection
from tests.support.models.pipelines import HUNYUAN, PIPELINES, call_arguments

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers'
FAMILIES = ("sd-unchecked", "sdxl", "pixart-alpha-1024", "sd3.5", "flux-dev", "aura-flow")


@dataclass(frozen=True)
class Recorded:
    """A pipeline's folder, and its denoiser with the call that was recorded of it."""

    folder: Path
    component: str
    denoiser: Denoiser

    def engine(self) -> FunctionEngine:
        """Return the very network, behind named arrays."""
        record = self.denoiser.record
        assert record.call is not None

        def function(feeds: Feeds) -> dict[str, Any]:
            given = {name: torch.from_numpy(value) for name, value in feeds.items()}
            with torch.no_grad():
                output = self.denoiser(given.pop("sample"), given.pop("timestep"), given)
            return {"output": output.contiguous().numpy()}

        state = TensorInfo("sample", "float32", (None, *record.sample_shape))
        conditioning = (TensorInfo(a.name, a.dtype, (None, *a.shape)) for a in record.call.arguments)
        fed = TensorInfo("timestep", record.call.timestep.dtype, (None,))
        output = TensorInfo("output", "float32", state.shape)
        return FunctionEngine(function, (state, fed, *conditioning), (output,))

    def stand_in(self) -> EngineDenoiser:
        module: Any = self.denoiser.module
        return EngineDenoiser(self.engine(), self.denoiser.record, module.config)

    def pipeline(self, denoiser: Any) -> Any:
        pipeline = DiffusionPipeline.from_pretrained(self.folder, **{self.component: denoiser})
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def images(self, denoiser: Any, **more: Any) -> np.ndarray:
        pipeline = self.pipeline(denoiser)
        given = call_arguments(pipeline) | more
        seeds = [torch.Generator().manual_seed(seed) for seed in range(2)]
        return np.asarray(pipeline(generator=seeds, output_type="np", **given).images)


def recorded(name: str, folder: Path) -> Recorded:
    source = find_source(ModelSection(source=str(PIPELINES[name](folder)), sample_size=16))
    module = load_module(source)
    found = record_call(open_pipeline(source, module), 3)
    return Recorded(folder, source.component, make_denoiser(source, module, found.recording))


@pytest.fixture(scope="module")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return recorded("sd3", tmp_path_factory.mktemp("sd3"))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_images_are_those_of_the_network(name: str, tmp_path: Path) -> None:
    made = recorded(name, tmp_path / name)
    with made.stand_in() as denoiser:
        exact, ours = made.images(made.denoiser.module), made.images(denoiser)
    assert exact.shape[0] == 2
    assert exact.std() > 0.01
    np.testing.assert_allclose(ours, exact, atol=1e-4)


def test_no_row_depends_on_its_batch(sd3: Recorded) -> None:
    with sd3.stand_in() as denoiser:
        pipeline = sd3.pipeline(denoiser)
        given = call_arguments(pipeline, rows=2)
        prompts = given.pop("prompt")

        def images(rows: list[int]) -> np.ndarray:
            seeds = [torch.Generator().manual_seed(row) for row in rows]
            chosen = [prompts[row] for row in rows]
            return np.asarray(pipeline(chosen, generator=seeds, output_type="np", **given).images)

        np.testing.assert_allclose(images([1]), images([0, 1])[1:], atol=1e-5)


def test_a_pipeline_takes_it_without_a_word(sd3: Recorded, caplog: pytest.LogCaptureFixture) -> None:
    logging.enable_propagation()
    try:
        with sd3.stand_in() as denoiser:
            assert sd3.pipeline(denoiser).transformer is denoiser
    finally:
        logging.disable_propagation()
    assert caplog.text == ""


def test_skipped_layers_stop_the_pipeline(sd3: Recorded) -> None:
    with sd3.stand_in() as denoiser, pytest.raises(UsageError, match=r"skip_layers\[0\]"):
        sd3.images(denoiser, skip_guidance_layers=[1], skip_layer_guidance_stop=1.0)


def test_a_scale_of_attention_stops_the_pipeline(sd3: Recorded) -> None:
    with sd3.stand_in() as denoiser, pytest.raises(UsageError, match=r"joint_attention_kwargs\.scale"):
        sd3.images(denoiser, joint_attention_kwargs={"scale": 0.5})


def test_looks_like_the_model(sd3: Recorded) -> None:
    model: Any = sd3.denoiser.module
    with sd3.stand_in() as denoiser:
        assert dict(denoiser.config) == dict(model.config)
        assert denoiser.inner_dim == model.inner_dim
        assert denoiser.patch_size == model.config.patch_size
        assert not hasattr(denoiser, "_reset_stateful_cache")
        with denoiser.cache_context("cond"):
            answer = denoiser(
                torch.zeros(1, 16, 16, 16), torch.zeros(1, 333, 64), torch.zeros(1, 64), torch.tensor([500.5])
            )
        assert type(answer) is type(
            model(
                torch.zeros(1, 16, 16, 16), torch.zeros(1, 333, 64), torch.zeros(1, 64), torch.tensor([5.0])
            )
        )


@pytest.mark.parametrize("name", ["attn_processors", "encoder_hid_proj", "load_lora_adapter"])
def test_says_that_there_is_no_network(sd3: Recorded, name: str) -> None:
    with sd3.stand_in() as denoiser, pytest.raises(AttributeError, match=f"no '{name}': it stands for SD3"):
        getattr(denoiser, name)


def test_the_configuration_of_another_width_is_refused(sd3: Recorded) -> None:
    record = sd3.denoiser.record
    with pytest.raises(ModelError, match="takes 5 channels, the engine 16 x 16 x 16"):
        EngineDenoiser(sd3.engine(), record, {"in_channels": 5})
    with pytest.raises(ModelError, match="to replace is a Linear"):
        EngineDenoiser(sd3.engine(), record, {}, kind=torch.nn.Linear)


def test_where_pipelines_always_cut_a_variance_there_is_one(sd3: Recorded) -> None:
    record = sd3.denoiser.record.model_copy(update={"family": "HunyuanDiT2DModel"})
    assert make_facade(record, HUNYUAN | {"in_channels": 16}).gives_variance
    assert not make_facade(record, HUNYUAN | {"in_channels": 16, "learn_sigma": False}).gives_variance


class Painter(torch.nn.Module):
    """A class that diffusers does not have."""

    config: ClassVar[dict[str, int]] = {"in_channels": 16, "sample_size": 16}

    def forward(self, canvas: Any, clock: Any, text: Any, pooled: Any = None) -> Any: ...


@pytest.mark.parametrize("kind", [Painter, None])
def test_stands_in_for_a_class_of_the_users_own(sd3: Recorded, kind: type[Any] | None) -> None:
    call = sd3.denoiser.call
    names = {
        "hidden_states": "canvas",
        "timestep": "clock",
        "encoder_hidden_states": "text",
        "pooled_projections": "pooled",
    }
    renamed = call.model_copy(
        update={
            "state": call.state.model_copy(update={"path": ("canvas",)}),
            "timestep": call.timestep.model_copy(update={"path": ("clock",)}),
            "arguments": tuple(a.model_copy(update={"path": (names[a.name],)}) for a in call.arguments),
            "constants": {},
        }
    )
    record = sd3.denoiser.record.model_copy(update={"family": "Painter", "call": renamed})
    state, text, pooled = torch.ones(2, 16, 16, 16), torch.ones(2, 333, 64), torch.ones(2, 64)
    with EngineDenoiser(sd3.engine(), record, Painter.config, kind=kind) as denoiser:
        answer = denoiser(state, 7.5, text=text, pooled=pooled)
        assert type(answer).__name__ == "DenoiserOutput"
        fed = torch.tensor([7.5, 7.5])
        given = {"encoder_hidden_states": text, "pooled_projections": pooled}
        torch.testing.assert_close(answer.sample, sd3.denoiser(state, fed, given))
        assert denoiser.sample_size == 16
