"""Do the samplers in numpy walk where a real pipeline walks, guidance, timesteps and packed latents included?"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline

from gacq_deploy.backends.base import Engine, TensorInfo
from gacq_deploy.backends.function import FunctionEngine
from gacq_deploy.samples.conditioning import Conditions
from gacq_deploy.sampling.ddim import initial_noise
from gacq_deploy.sampling.loop import generate, native_sampler
from gacq_deploy.spec import Array
from tests.support.artifacts.samplers import open_sampler
from tests.support.models.pipelines import PIPELINES, call_arguments

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers'
STEPS, SEEDS = 4, (3, 4)
STATE = ("sample", "hidden_states")
PACKED = (64, 64)


class Watched:
    """A pipeline's denoiser: how it is called, and what its scheduler is given."""

    def __init__(self, pipeline: Any) -> None:
        self.module = pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer
        self.call: dict[str, Any] = {}
        self.given: dict[str, Any] = {}
        self.module.register_forward_pre_hook(self._called, with_kwargs=True)
        whole = pipeline.scheduler.set_timesteps

        @functools.wraps(whole)
        def set_timesteps(*args: Any, **kwargs: Any) -> None:
            self.given = kwargs
            whole(*args, **kwargs)

        pipeline.scheduler.set_timesteps = set_timesteps

    def _called(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self.call:
            self.call = dict(inspect.signature(module.forward).bind(*args, **kwargs).arguments)

    @property
    def conditioning(self) -> dict[str, Array]:
        """Tensors with one row per row of the call, those inside a dict as ``outer/inner``."""
        (rows,) = {len(self.call[key]) for key in STATE if key in self.call}
        flat = dict(self.call)
        for key, value in self.call.items():
            if isinstance(value, dict):
                flat |= {f"{key}/{inner}": tensor for inner, tensor in value.items()}
        return {
            key: value.numpy()
            for key, value in flat.items()
            if isinstance(value, torch.Tensor)
            and value.shape[:1] == (rows,)
            and key not in (*STATE, "timestep")
        }

    def engine(self, shape: tuple[int, ...], timestep: str) -> Engine:
        """Return the denoiser as an engine."""
        (state,) = (key for key in STATE if key in self.call)

        @torch.no_grad()
        def answer(feeds: Mapping[str, Array]) -> dict[str, Array]:
            call = {k: dict(v) if isinstance(v, dict) else v for k, v in self.call.items()}
            for key, value in feeds.items():
                outer, _, inner = key.partition("/")
                place = call[outer] if inner else call
                place[inner or {"sample": state}.get(key, key)] = torch.from_numpy(value)
            return {"output": self.module(**call)[0].numpy()}

        inputs = [TensorInfo("sample", "float32", (None, *shape)), TensorInfo("timestep", timestep, (None,))]
        inputs += [TensorInfo(k, v.dtype.name, (None, *v.shape[1:])) for k, v in self.conditioning.items()]
        output = TensorInfo("output", "float32", (None, *shape))
        return FunctionEngine(answer, tuple(inputs), (output,), "pipeline")


@pytest.mark.parametrize(
    ("name", "shape", "native", "scale"),
    [
        ("sd", (4, 16, 16), "ddim", 1.0),
        ("sd2-v", (4, 16, 16), "ddim", 1.0),
        ("sdxl", (4, 16, 16), "ddim", 1.0),
        ("sd3", (16, 16, 16), "flow", 1.0),
        ("flux-dev", PACKED, "flow", 0.001),
        ("flux-schnell", PACKED, "flow", 0.001),
        ("aura-flow", (4, 16, 16), "flow", 0.001),
    ],
)
def test_latents_are_the_pipelines_own(
    name: str, shape: tuple[int, ...], native: str, scale: float, tmp_path: Path
) -> None:
    pipeline = DiffusionPipeline.from_pretrained(PIPELINES[name](tmp_path / "model"))
    pipeline.set_progress_bar_config(disable=True)
    class_name = type(pipeline.scheduler).__name__
    saved = dict(pipeline.scheduler.config)
    if native == "ddim":
        # the pipeline's own never clips, and diffusers' DDIM would
        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    watched = Watched(pipeline)
    noise = torch.from_numpy(initial_noise(SEEDS, shape))
    asked = call_arguments(pipeline, rows=len(SEEDS), steps=STEPS)
    wanted = pipeline(**asked, latents=noise, output_type="latent").images.numpy()

    config = {**saved, "_class_name": class_name, "mu": watched.given.get("mu")}
    timestep = "int64" if native == "ddim" else "float32"
    assert native_sampler(config) == native
    sampler = open_sampler(config, STEPS, dtype=timestep, scale=scale)
    first = watched.call["timestep"].numpy().reshape(-1)[0]
    assert first == sampler.model_timesteps[0]
    assert first.dtype == timestep
    conditions = conditions_of(watched.conditioning, pipeline.guidance_scale)
    assert conditions.branches == (1 if shape == PACKED else 2)
    with watched.engine(shape, timestep) as engine:
        made = generate(engine, sampler, shape=shape, conditions=conditions, seeds=SEEDS)
    np.testing.assert_allclose(made, wanted, atol=(1e-4 if native == "ddim" else 1e-5) * np.abs(wanted).max())
    assert np.abs(wanted).max() > 1.5, "latents are not cut off at 1"


def conditions_of(conditioning: Mapping[str, Array], scale: float) -> Conditions:
    """Return a guided call's halves, or an unguided call's rows."""
    count = len(SEEDS)
    negative, positive = (
        {k: v[rows] for k, v in conditioning.items()} for rows in (slice(count), slice(count, None))
    )
    guided = all(len(value) for value in positive.values())
    return Conditions(positive, negative, scale) if guided else Conditions(negative)
