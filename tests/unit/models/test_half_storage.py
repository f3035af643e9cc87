"""Is a model that is stored in half precision calibrated to the very numbers of its float32 values, kept small?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import nn

from gacq_deploy.artifact.artifact import CalibrationArtifact
from gacq_deploy.calibration.stage import calibrate
from gacq_deploy.models.call_recorder import record_call
from gacq_deploy.models.half_storage import HalfStored, keep_half
from gacq_deploy.models.pipelines import open_pipeline
from gacq_deploy.models.source import digest_weights, find_source, load_module
from gacq_deploy.models.trajectories.prompted import wanted_samples
from gacq_deploy.models.trajectories.shards import collect_file
from gacq_deploy.recipe.load import parse_recipe
from gacq_deploy.recipe.sections import ModelSection, SamplesSection
from gacq_deploy.run_directory import RunDirectory
from tests.support.models.one_level import ONE_LEVEL
from tests.support.models.pipelines import FLUX, PIPELINES, PIXART, UNCONDITIONAL_UNET
from tests.support.models.tiny import SCHEDULER, random_model, tiny_unet

HALVES = (torch.float16, torch.bfloat16)
LEARNED = """
schema: gacq-deploy/recipe/1
name: learned
model: {{source: "{source}"}}
samples: {{trajectories: 4, steps: 4, validation_share: 0.25}}
quantization:
  smoothing: {smoothing}
  rules: [{{match: "*", ignore: true}}, {{match: "mid_block.*", bits: 8}}, {{match: "*time_emb*", ignore: true}}]
calibration:
  threads: 1
  reconstruction: {{iterations: 2, batch: 4}}
  weighting: {{mode: gac, iterations: 1, polish_iterations: 1, stages: [polish]}}
  polish: {{steps: 2, batch: 4}}
parity: {{steps: 4, probe: {{trajectories: 2, local_samples: 2}}}}
runtime: {{steps: 4}}
"""


def save(module: nn.Module, folder: Path) -> Path:
    module.save_pretrained(folder)  # type: ignore[operator]
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    return folder


def learned(source: Path, root: Path) -> CalibrationArtifact:
    recipe = parse_recipe(LEARNED.format(source=source, smoothing="{alpha: 0.5}"), origin="test")
    return calibrate(recipe, RunDirectory(root))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("UNet2DModel", UNCONDITIONAL_UNET),
        ("PixArtTransformer2DModel", PIXART),
        ("FluxTransformer2DModel", FLUX),
    ],
)
def test_loaded_as_stored_it_is_the_same_model(
    kind: str, config: dict[str, object], dtype: torch.dtype, tmp_path: Path
) -> None:
    import diffusers

    save(random_model(getattr(diffusers, kind), config, 0).to(dtype), tmp_path / "model")
    source = find_source(ModelSection(source=str(tmp_path / "model")))
    state = torch.get_rng_state()
    stored = load_module(source, keep_stored=True)
    assert torch.equal(torch.get_rng_state(), state)
    plain = load_module(source)
    assert digest_weights(stored) == digest_weights(plain)
    for a, b in zip(stored.parameters(), plain.parameters(), strict=True):
        assert a.dtype == b.dtype == torch.float32
        assert isinstance(a, nn.Parameter)
        assert isinstance(a, HalfStored) == (a.ndim > 1)
    assert not any(p.requires_grad for p in stored.parameters())
    for (name, a), (other, b) in zip(stored.named_buffers(), plain.named_buffers(), strict=True):
        assert name == other
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def test_its_pipeline_walks_the_same_trajectories(tmp_path: Path) -> None:
    folder = PIPELINES["sd-unchecked"](tmp_path / "model")
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    unet.to(torch.bfloat16).save_pretrained(folder / "unet")
    source = find_source(ModelSection(source=str(folder)))
    wanted = wanted_samples(SamplesSection(trajectories=1, steps=2, prompts=("a cat",)))
    for keep in (True, False):
        opened = open_pipeline(source, load_module(source, keep_stored=keep))
        collect_file(opened, record_call(opened, 2), wanted, tmp_path / f"kept-{keep}")
    assert (tmp_path / "kept-True").read_bytes() == (tmp_path / "kept-False").read_bytes()


@pytest.mark.slow
def test_all_that_is_learned_is_the_same_to_the_bit(tmp_path: Path) -> None:
    """The same values, stored as float32: smoothing, blocks, polish with learned sample weights, probe."""
    half = save(tiny_unet(**ONE_LEVEL).to(torch.bfloat16), tmp_path / "half")
    loaded = load_module(find_source(ModelSection(source=str(half))), keep_stored=True)
    assert isinstance(loaded.get_parameter("conv_out.weight"), HalfStored)
    full = save(tiny_unet(**ONE_LEVEL).to(torch.bfloat16).float(), tmp_path / "full")
    one, two = (learned(f, tmp_path / f"run-{f.name}") for f in (half, full))
    assert one.samples_sha256 == two.samples_sha256
    assert one.model.weights_sha256 == two.model.weights_sha256
    for name in ("tensors.safetensors", "probe.safetensors"):
        files = [tmp_path / f"run-{f.name}" / "artifact" / name for f in (half, full)]
        assert files[0].read_bytes() == files[1].read_bytes(), name


def test_a_file_of_mixed_types_is_left_to_diffusers(tmp_path: Path) -> None:
    folder = save(tiny_unet().to(torch.bfloat16), tmp_path / "model")
    file = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["conv_in.weight"] = tensors["conv_in.weight"].float() + 1e-4
    save_file(tensors, file, metadata={"format": "pt"})
    source = find_source(ModelSection(source=str(folder)))
    stored = load_module(source, keep_stored=True)
    assert digest_weights(stored) == digest_weights(load_module(source))
    assert not any(isinstance(p, HalfStored) for p in stored.parameters())


def test_a_module_in_memory_keeps_what_it_is_stored_as() -> None:
    module = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2)).to(torch.bfloat16)
    plain = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2)).to(torch.bfloat16)
    plain.load_state_dict(module.state_dict())
    keep_half(module)
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(module(x), plain.float()(x))
    assert sum(p.numel() * p.element_size() for p in module.parameters()) == 2 * 48 + 4 * 26


def test_a_write_is_refused_and_not_lost() -> None:
    weight = HalfStored(torch.ones(2, 2, dtype=torch.bfloat16))
    with pytest.raises(RuntimeError, match="would write to a weight that is stored in half precision"):
        weight.add_(1)
    assert torch.equal(weight + 0, torch.ones(2, 2))
