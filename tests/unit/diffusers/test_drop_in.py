"""Any recorded pipeline makes the same images with an engine in its denoiser's place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from gacq_deploy.backends.base import Feeds, TensorInfo
from gacq_deploy.backends.function import FunctionEngine
from gacq_deploy.diffusers.denoiser import EngineDenoiser
from gacq_deploy.errors import ModelError, UsageError
from gacq_deploy.models.base import Denoiser
from gacq_deploy.models.pipelines import open_pipeline
from gacq_deploy.models.recording import record_call
from gacq_deploy.models.source import find_source, load_module, make_denoiser
from gacq_deploy.recipe import ModelSection
from tests.support.pipelines import PIPELINES, call_arguments

FAMILIES = ("sd-unchecked", "sdxl", "pixart-alpha-1024", "sd3.5", "flux-dev", "hunyuan-dit", "aura-flow")


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
        steering = (TensorInfo(a.name, a.dtype, (None, *a.shape)) for a in record.call.arguments)
        told = TensorInfo("timestep", record.call.timestep.dtype, (None,))
        output = TensorInfo("output", "float32", state.shape)
        return FunctionEngine(function, (state, told, *steering), (output,))

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
def flux(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return recorded("flux-dev", tmp_path_factory.mktemp("flux"))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_images_are_those_of_the_network(name: str, tmp_path: Path) -> None:
    made = recorded(name, tmp_path / name)
    with made.stand_in() as denoiser:
        exact, ours = made.images(made.denoiser.module), made.images(denoiser)
    assert exact.shape[0] == 2
    assert exact.std() > 0.01
    np.testing.assert_allclose(ours, exact, atol=1e-4)
