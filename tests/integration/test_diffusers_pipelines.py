"""Real pipelines of diffusers run engines: the same images as the graph driven by hand, and near the float model's."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UNet2DModel,
)

from gacq_deploy.diffusers import EngineDenoiser, load_denoiser
from gacq_deploy.engines.open import open_engine
from gacq_deploy.errors import ArtifactError, GacqError, ModelError, UsageError
from gacq_deploy.export.float_graph.graph import float_graph
from gacq_deploy.models.structure.graph import trace_model
from gacq_deploy.recipe.load import load_recipe
from gacq_deploy.run_directory import RunDirectory
from tests.support.artifacts.judged_run import OTHER_MODEL, make_run
from tests.support.artifacts.nearest import Exported, exported
from tests.support.models.architectures import small_dit
from tests.support.models.tiny import SCHEDULER

STEPS = 4
SCHEDULERS = {
    "ddim": DDIMScheduler,
    "ddpm": DDPMScheduler,
    "euler": EulerDiscreteScheduler,
    "dpm++": DPMSolverMultistepScheduler,
}
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers'


def scheduler_of(name: str) -> Any:
    config = {k: v for k, v in SCHEDULER.items() if k != "_class_name"}
    return SCHEDULERS[name].from_config(config | {"timestep_spacing": "leading"})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A calibrated and exported UNet2DModel without classes. Never written to: copy it."""
    return make_run(tmp_path_factory.mktemp("pipelines"), **OTHER_MODEL)


@pytest.fixture
def run_copy(run: RunDirectory, tmp_path: Path) -> RunDirectory:
    return RunDirectory(Path(shutil.copytree(run.root, tmp_path / "run")))


def float_model(run: RunDirectory) -> UNet2DModel:
    return UNet2DModel.from_pretrained(run.load_recipe().model.source, low_cpu_mem_usage=False).eval()


def generators(seeds: list[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def images_of(kind: Any, unet: Any, scheduler: str, seeds: list[int]) -> np.ndarray:
    pipeline = kind(unet=unet, scheduler=scheduler_of(scheduler))
    pipeline.set_progress_bar_config(disable=True)
    return np.asarray(
        pipeline(
            batch_size=len(seeds), generator=generators(seeds), num_inference_steps=STEPS, output_type="np"
        ).images
    )


def images_by_hand(graph: Path, scheduler: str, seeds: list[int]) -> np.ndarray:
    """Drive the graph itself, with a scheduler of diffusers and nothing of the drop-in."""
    noise = generators(seeds)
    stepper = scheduler_of(scheduler)
    stepper.set_timesteps(STEPS)
    with open_engine("ort-cpu", graph, threads=1) as engine:
        size = engine.inputs[0].shape[1:]
        state = torch.cat([torch.randn((1, *size), generator=one) for one in noise])
        for t in stepper.timesteps:
            feeds = {"sample": state.numpy(), "timestep": np.full(len(seeds), int(t), np.int64)}
            output = torch.from_numpy(engine.run(feeds)["output"])
            state = stepper.step(output, t, state, generator=noise).prev_sample
    return np.asarray((state / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1))


@pytest.mark.parametrize(("kind", "scheduler"), [(DDIMPipeline, "ddim"), (DDPMPipeline, "ddpm")])
def test_a_pipeline_makes_the_images_of_the_graph(run: RunDirectory, kind: Any, scheduler: str) -> None:
    seeds = [3, 4, 5]
    exact = images_of(kind, float_model(run), scheduler, seeds)
    with load_denoiser(run.root, threads=1) as int8, load_denoiser(run.root, engine="float", threads=1) as fp:
        quantized = images_of(kind, int8, scheduler, seeds)
        np.testing.assert_allclose(images_of(kind, fp, scheduler, seeds), exact, atol=1e-4)
    np.testing.assert_allclose(quantized, images_by_hand(run.cpu_onnx, scheduler, seeds), atol=1e-4)
    assert 0 < np.abs(quantized - exact).mean() < 0.02
    assert exact.std() > 0.1


@pytest.mark.parametrize("engine", ["ort-cpu", "openvino"])
def test_an_image_is_the_same_alone_and_in_a_batch(run: RunDirectory, engine: str) -> None:
    with load_denoiser(run.root, engine=engine, threads=1) as denoiser:
        together = images_of(DDIMPipeline, denoiser, "ddim", [7, 8, 9])
        for row, seed in enumerate([7, 8, 9]):
            alone = images_of(DDIMPipeline, denoiser, "ddim", [seed])
            np.testing.assert_array_equal(alone, together[row : row + 1])


def test_replaces_the_denoiser_of_a_pipeline(run: RunDirectory, tmp_path: Path) -> None:
    pipeline = DDIMPipeline(unet=float_model(run), scheduler=scheduler_of("ddim"))
    with load_denoiser(run.root, threads=1, config=pipeline.unet.config) as denoiser:
        pipeline.unet = denoiser
        assert pipeline.to("cpu").unet is denoiser
        assert pipeline.components["unet"] is denoiser
        pipeline.to(torch.float64)
        assert (pipeline.device.type, pipeline.dtype) == ("cpu", torch.float64)
        pipeline.set_progress_bar_config(disable=True)
        images = pipeline(num_inference_steps=STEPS, output_type="np").images
        assert images.shape == (1, 8, 8, 1)
        assert images.dtype == np.float64


def test_a_fractional_timestep_stops_the_pipeline(run: RunDirectory) -> None:
    with load_denoiser(run.root, threads=1) as denoiser:
        pipeline = DDPMPipeline(unet=denoiser, scheduler=EulerDiscreteScheduler(timestep_spacing="linspace"))
        pipeline.set_progress_bar_config(disable=True)
        with pytest.raises(UsageError, match="is not whole"):
            pipeline(num_inference_steps=7)


@dataclass(frozen=True)
class Pair:
    """A small model, and its float and INT8 graphs as denoisers."""

    model: Any
    exact: EngineDenoiser
    int8: EngineDenoiser


def pair_of(source: Exported, recipe: str) -> Pair:
    denoiser = source.denoiser
    model: Any = denoiser.module
    graphs = (source.float_model, source.quantized(load_recipe(recipe)).model)
    exact, int8 = (
        EngineDenoiser(
            open_engine("ort-cpu", graph.SerializeToString(), threads=1), denoiser.record, model.config
        )
        for graph in graphs
    )
    return Pair(model, exact, int8)


@pytest.fixture(scope="module")
def dit() -> Pair:
    denoiser = small_dit(num_embeds_ada_norm=1000)  # DiTPipeline's null class is 1000
    return pair_of(Exported(denoiser, trace_model(denoiser), float_graph(denoiser)), "dit-w8a8")


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoencoderKL(
            block_out_channels=(8,), norm_num_groups=4, latent_channels=4, sample_size=8
        ).eval()


def dit_images(transformer: Any, vae: AutoencoderKL, scheduler: str, labels: list[int]) -> np.ndarray:
    pipeline = DiTPipeline(transformer, vae, scheduler_of(scheduler))
    pipeline.set_progress_bar_config(disable=True)
    return np.asarray(
        pipeline(
            labels,
            generator=generators(labels),
            num_inference_steps=STEPS,
            guidance_scale=4.0,
            output_type="np",
        ).images
    )


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["ddim", "euler", "dpm++"])
@pytest.mark.parametrize("labels", [[3], [1, 7]], ids=str)
def test_a_guided_dit_with_a_learned_variance(
    dit: Pair, vae: AutoencoderKL, scheduler: str, labels: list[int]
) -> None:
    assert dit.model.config.out_channels == 2 * dit.model.config.in_channels
    exact = dit_images(dit.model, vae, scheduler, labels)
    np.testing.assert_allclose(dit_images(dit.exact, vae, scheduler, labels), exact, atol=1e-4)
    assert 0 < np.abs(dit_images(dit.int8, vae, scheduler, labels) - exact).mean() < 0.02
    assert exact.std() > 0.05


def guided(unet: Any, scheduler: str, rows: int, added: dict[str, torch.Tensor]) -> torch.Tensor:
    """Denoise as Stable Diffusion's pipelines do: text, guidance, both in one batch."""
    stepper = scheduler_of(scheduler)
    stepper.set_timesteps(STEPS)
    noise = torch.Generator().manual_seed(0)
    width = unet.config.cross_attention_dim
    text = torch.randn((2 * rows, 77, width), generator=noise)
    size = unet.config.sample_size
    state = torch.randn((rows, unet.config.in_channels, size, size), generator=noise)
    state = state * stepper.init_noise_sigma
    for t in stepper.timesteps:
        both = stepper.scale_model_input(torch.cat([state] * 2), t)
        with torch.no_grad():
            output = unet(
                both,
                t,
                encoder_hidden_states=text,
                timestep_cond=None,
                cross_attention_kwargs=None,
                added_cond_kwargs=added or None,
                return_dict=False,
            )[0]
        plain, conditional = output.chunk(2)
        state = stepper.step(plain + 4.0 * (conditional - plain), t, state, return_dict=False)[0]
    return state


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["ddim", "euler", "dpm++"])
@pytest.mark.parametrize("recipe", ["sd15-w8a8"])
def test_a_guided_text_model(recipe: str, scheduler: str) -> None:
    pair = pair_of(exported(recipe), recipe)
    added = {}
    if recipe == "sdxl-w8a8":
        pooled = pair.model.add_embedding.linear_1.in_features - 6 * pair.model.config.addition_time_embed_dim
        added = {
            "text_embeds": torch.ones(2, pooled),
            "time_ids": torch.tensor([[16.0, 16, 0, 0, 16, 16]] * 2),
        }
    exact = guided(pair.model, scheduler, 1, added)
    scale = float(exact.abs().max())
    torch.testing.assert_close(guided(pair.exact, scheduler, 1, added), exact, atol=1e-4 * scale, rtol=0)
    error = (guided(pair.int8, scheduler, 1, added) - exact).square().mean() / exact.square().mean()
    assert 0 < float(error) < 0.05
    answer = pair.int8(torch.zeros(2, 4, 16, 16), 3, torch.zeros(2, 77, 48), added_cond_kwargs=added)
    assert type(answer).__name__ == "UNet2DConditionOutput"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def edit_recipe(run: RunDirectory, old: str, new: str) -> None:
    text = run.recipe_path.read_text(encoding="utf-8")
    assert old in text
    run.recipe_path.write_text(text.replace(old, new), encoding="utf-8")


def move_model(run: RunDirectory) -> None:
    edit_recipe(run, run.load_recipe().model.source, str(run.root / "gone"))


def leave(run: RunDirectory) -> None: ...


@dataclass(frozen=True)
class Refusal:
    """What is done to a run or asked of it, and what is said to that."""

    name: str
    kind: type[GacqError]
    message: str
    spoil: Callable[[RunDirectory], Any] = leave
    options: dict[str, Any] = field(default_factory=dict)


REFUSALS = (
    Refusal("altered graph", ArtifactError, "int8.cpu.onnx", lambda run: flip(run.cpu_onnx)),
    Refusal(
        "altered artifact", ArtifactError, "tensors", lambda run: flip(run.artifact / "tensors.safetensors")
    ),
    Refusal("not exported", ArtifactError, "export --onnx", lambda run: run.onnx_manifest.unlink()),
    Refusal("no run", ArtifactError, "not a run directory", lambda run: run.recipe_path.unlink()),
    Refusal("unknown engine", UsageError, "abacus", options={"engine": "abacus"}),
    Refusal("not built", ArtifactError, "build-trt", options={"engine": "tensorrt"}),
    Refusal("threads", UsageError, "-1 threads", options={"threads": -1}),
    Refusal("foreign configuration", ModelError, "7 channels", options={"config": {"in_channels": 7}}),
    Refusal("moved model", UsageError, "config=pipe.unet.config", move_model),
)


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda r: r.name)
def test_what_cannot_be_loaded_is_refused(run_copy: RunDirectory, refusal: Refusal) -> None:
    refusal.spoil(run_copy)
    with pytest.raises(refusal.kind) as caught:
        load_denoiser(run_copy.root, **refusal.options)
    assert refusal.message in str(caught.value)


def test_a_moved_model_is_no_loss_when_its_configuration_is_given(
    run: RunDirectory, run_copy: RunDirectory
) -> None:
    config = float_model(run).config
    move_model(run_copy)
    with load_denoiser(str(run_copy.root), threads=1, config=config) as denoiser:
        assert denoiser.config.sample_size == config.sample_size


def test_of_a_hub_model_only_the_configuration_is_fetched(
    run: RunDirectory, run_copy: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = run.load_recipe().model.source
    asked: list[str] = []

    def fetch(
        repo: str, *, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str]
    ) -> str:
        assert (repo, revision) == ("owner/model", None)
        asked.extend(allow_patterns)
        return source

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    edit_recipe(run_copy, source, "owner/model")
    with load_denoiser(run_copy.root, threads=1) as denoiser:
        assert denoiser.config.sample_size == 8
    assert asked
    assert all(pattern.endswith(".json") for pattern in asked)


def test_says_that_a_step_policy_is_not_followed(
    run_copy: RunDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    edit_recipe(run_copy, "runtime:\n  steps: 20", "runtime:\n  steps: 5")
    edit_recipe(run_copy, "float_steps: 0", "float_steps: 2")
    with caplog.at_level(logging.WARNING), load_denoiser(run_copy.root, threads=1):
        assert "runs 2 steps in float; in a pipeline every step runs in onnxruntime" in caplog.text
    caplog.clear()
    with load_denoiser(run_copy.root, engine="float", threads=1):
        assert not caplog.text
