"""Is a LoRA in the denoiser's weights before anything else, and refused when it is not wholly for this model?"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from gacq_deploy.errors import ArtifactError, BackendUnavailable, GacqError, ModelError, UsageError
from gacq_deploy.models import lora
from gacq_deploy.models.pipelines import open_pipeline
from gacq_deploy.models.source import (
    digest_weights,
    find_source,
    load_float_denoiser,
    load_module,
    make_denoiser,
)
from gacq_deploy.recipe.sections import LoraSection, ModelSection
from tests.support.models.loras import make_lora
from tests.support.models.pipelines import PIPELINES

Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pipelines and a LoRA of each."""
    folder = tmp_path_factory.mktemp("loras")
    found = {}
    for name in ("sd-unchecked", "flux-dev"):
        found[name] = PIPELINES[name](folder / name)
        found[f"{name}-lora"] = make_lora(found[name], folder / f"{name}-lora", alpha=8)
    found["sd-text"] = make_lora(found["sd-unchecked"], folder / "text", text_encoder=True, seed=3)
    return found


def section(model: Path, *files: Path, scale: float = 1.0) -> ModelSection:
    return ModelSection(
        source=str(model), loras=tuple(LoraSection(source=str(file), scale=scale) for file in files)
    )


def digest(model: Path, *files: Path, scale: float = 1.0) -> str:
    return digest_weights(load_module(find_source(section(model, *files, scale=scale))))


@pytest.mark.parametrize(("name", "part"), [("sd-unchecked", "unet"), ("flux-dev", "transformer")])
def test_it_is_the_model_that_the_pipeline_itself_would_fuse(
    name: str, part: str, made: dict[str, Path]
) -> None:
    file = made[f"{name}-lora"]
    pipeline: Any = DiffusionPipeline.from_pretrained(made[name])
    plain = digest_weights(getattr(pipeline, part))
    pipeline.load_lora_weights(file)
    pipeline.fuse_lora(components=[part], lora_scale=0.5)
    pipeline.unload_lora_weights()
    module = load_module(find_source(section(made[name], file, scale=0.5)))
    assert digest_weights(module) == digest_weights(getattr(pipeline, part)) != plain
    assert not any(p.requires_grad for p in module.parameters())
    assert not any("peft" in type(m).__module__ for m in module.modules())


def test_a_bare_denoiser_takes_it_too_and_the_folder_it_lies_in(made: dict[str, Path]) -> None:
    model, file = made["sd-unchecked"], made["sd-unchecked-lora"]
    assert digest(model / "unet", file) == digest(model, file) == digest(model, file.parent)


def test_names_as_kohya_writes_them_mean_the_same(made: dict[str, Path], tmp_path: Path) -> None:
    model, file = made["sd-unchecked"], made["sd-unchecked-lora"]
    save_file(kohya(load_file(file), alpha=8), tmp_path / "kohya.safetensors")
    assert digest(model, tmp_path / "kohya.safetensors") == digest(model, file)
    with pytest.raises(ModelError, match="holds nothing for this denoiser") as caught:
        digest(model / "unet", tmp_path / "kohya.safetensors")  # only a pipeline's class can convert them
    assert "whole pipeline" in caught.value.hint


def kohya(tensors: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
    written = {}
    for name, value in tensors.items():
        layer, _, factor = name.removeprefix("unet.").partition(".lora.")
        stem = f"lora_unet_{layer.replace('.', '_')}"
        written[f"{stem}.lora_{factor}"] = value
        written[f"{stem}.alpha"] = torch.tensor(alpha)
    return written


def test_fusing_moves_no_random_generator_and_two_follow_in_order(
    made: dict[str, Path], tmp_path: Path
) -> None:
    model, first = made["sd-unchecked"], made["sd-unchecked-lora"]
    second = make_lora(model, tmp_path / "second", seed=1)
    state = torch.get_rng_state()
    both = load_module(find_source(section(model, first, second)))
    assert torch.equal(torch.get_rng_state(), state)
    other = load_module(find_source(section(model, second, first)))
    for a, b in zip(both.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    one = load_module(find_source(section(model, first))).state_dict()
    assert any(not torch.equal(one[name], value) for name, value in both.state_dict().items())


def without_one(tensors: dict[str, Tensor], factor: str) -> dict[str, Tensor]:
    lost = next(name for name in tensors if factor in name)
    return {name: value for name, value in tensors.items() if name != lost}


def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.replace("unet.mid_block", "unet.upper_block"): v for k, v in tensors.items()}


def poisoned(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    name = next(iter(tensors))
    return tensors | {name: tensors[name] * float("nan")}


def widened(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    name = next(k for k in tensors if ".down." in k)
    return tensors | {name: torch.cat([tensors[name]] * 2, 1)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: without_one(t, ".up."), "is not whole: layer .* has lora_A alone"),
        (lambda t: without_one(t, ".down."), "is not whole: layer .* has lora_B alone"),
        (renamed, r"does not fit UNet2DConditionModel: \d of its \d+ layers are not in the model"),
        (widened, r"does not fit UNet2DConditionModel: .*size mismatch for .*lora_A"),
        (poisoned, "holds NaN or Inf"),
        (lambda t: t | {"unet.x.dora_scale": torch.ones(1)}, "no plain LoRA: it holds 'unet.x.dora_scale'"),
        (lambda _: {"weight": torch.ones(2)}, "is no LoRA: none of its 1 tensors is one"),
    ],
    ids=["without-B", "without-A", "unknown-layer", "other-width", "nan", "dora", "no-lora"],
)
def test_what_would_be_fused_in_part_is_refused(
    change: Change, said: str, made: dict[str, Path], tmp_path: Path
) -> None:
    save_file(change(load_file(made["sd-unchecked-lora"])), tmp_path / "file.safetensors")
    with pytest.raises(ModelError, match=said) as caught:
        digest(made["sd-unchecked"], tmp_path / "file.safetensors")
    assert caught.value.hint


def test_metadata_that_ask_for_more_are_refused(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """peft would import the module that ``megatron_core`` names."""
    (tmp_path / "seen.py").write_text("raise SystemExit('it was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    plain, file = made["sd-unchecked-lora"], tmp_path / "file.safetensors"
    with safe_open(plain, framework="pt") as opened:
        kept = opened.metadata()
    told = json.loads(kept["lora_adapter_metadata"])
    told |= {"unet.megatron_config": {"a": 1}, "unet.megatron_core": "seen"}
    save_file(load_file(plain), file, {**kept, "lora_adapter_metadata": json.dumps(told)})
    with pytest.raises(ModelError, match="its metadata ask for 'megatron_co"):
        digest(made["sd-unchecked"], file)


def test_another_family_is_refused(made: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match="holds nothing for this denoiser: its tensors are for transformer"):
        digest(made["sd-unchecked"], made["flux-dev-lora"])
    with pytest.raises(ModelError, match=r"LoRA .* (holds nothing|has names|drops)"):
        digest(made["flux-dev"], made["sd-unchecked-lora"])


@pytest.mark.parametrize(
    ("name", "content", "kind", "said"),
    [
        ("absent.safetensors", None, UsageError, "neither a file nor a folder"),
        ("weights.bin", b"\x80\x02", ModelError, "is pickled"),
        ("cut.safetensors", b"garbage", ArtifactError, "no safetensors file, or truncated"),
    ],
)
def test_a_bad_file_is_refused_before_the_model_is_loaded(
    name: str, content: bytes | None, kind: type[GacqError], said: str, made: dict[str, Path], tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(kind, match=said):
        find_source(section(made["sd-unchecked"], tmp_path / name))


def test_a_folder_without_the_file_is_refused(made: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing", encoding="utf-8")
    with pytest.raises(UsageError, match=r"holds no pytorch_lora_weights.safetensors but notes.txt"):
        find_source(section(made["sd-unchecked"], tmp_path))


def test_classes_without_adapters_are_named(made: dict[str, Path]) -> None:
    loras = (LoraSection(source=str(made["sd-unchecked-lora"])),)
    with pytest.raises(ModelError, match="UNet2DModel takes no LoRA"):
        find_source(ModelSection(loras=loras))


def test_without_peft_the_extra_is_named(made: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(lora, "find_spec", lambda name: None if name == "peft" else real(name))
    with pytest.raises(BackendUnavailable, match="peft") as caught:
        find_source(section(made["sd-unchecked"], made["sd-unchecked-lora"]))
    assert "gacq-deploy[lora]" in caught.value.hint
    find_source(section(made["sd-unchecked"]))


def test_a_part_for_the_text_encoder_is_fused_where_prompts_are_encoded(made: dict[str, Path]) -> None:
    model, file = made["sd-unchecked"], made["sd-text"]
    source = find_source(section(model, file, scale=0.5))
    opened = open_pipeline(source, load_module(source)).pipeline
    reference: Any = DiffusionPipeline.from_pretrained(model)
    plain = {k: v.clone() for k, v in reference.text_encoder.state_dict().items()}
    reference.load_lora_weights(file)
    reference.fuse_lora(components=["unet", "text_encoder"], lora_scale=0.5)
    reference.unload_lora_weights()
    fused = opened.text_encoder.state_dict()
    assert list(fused) == list(plain)
    changed = [k for k, value in fused.items() if not torch.equal(value, plain[k])]
    assert changed
    assert all(k.endswith("_proj.weight") for k in changed)
    for name, value in reference.text_encoder.state_dict().items():
        torch.testing.assert_close(fused[name], value)
    assert digest_weights(opened.unet) == digest_weights(reference.unet)
    assert lora.text_parts(source.section.loras, source.pipeline_class) == [file.name]


def test_a_text_part_that_fits_only_partly_is_refused(made: dict[str, Path], tmp_path: Path) -> None:
    tensors = load_file(made["sd-text"])
    renamed = {k.replace("layers.0", "layers.70"): v for k, v in tensors.items()}
    assert renamed.keys() != tensors.keys()
    save_file(renamed, tmp_path / "file.safetensors")
    source = find_source(section(made["sd-unchecked"], tmp_path / "file.safetensors"))
    with pytest.raises(ModelError, match=r"LoRA .*text_encoder"):
        open_pipeline(source, load_module(source))


def test_the_record_names_file_and_scale_and_another_file_is_stale(
    made: dict[str, Path], tmp_path: Path
) -> None:
    file = Path(shutil.copy(made["sd-unchecked-lora"], tmp_path / "mine.safetensors"))
    loras = section(made["sd-unchecked"], file, scale=0.5).loras
    recorded = lora.record_loras(loras)
    assert [(r.source, r.scale) for r in recorded] == [(str(file), 0.5)]
    lora.check_unchanged(loras, recorded)
    source = find_source(section(made["sd-unchecked"], file, scale=0.5))
    module = load_module(source)
    record = make_denoiser(source, module).record
    assert record.loras == recorded
    assert load_float_denoiser(source.section, record).record == record
    make_lora(made["sd-unchecked"], tmp_path / "new", seed=9).replace(file)
    with pytest.raises(ArtifactError, match="is not the one the artifact was calibrated with"):
        load_float_denoiser(source.section, record)
    with pytest.raises(ArtifactError, match="The recipe names 0 LoRAs"):
        lora.check_unchanged((), recorded)
