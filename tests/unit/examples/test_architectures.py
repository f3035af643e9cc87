import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoModel

from benchmarks.quality.classes import example

MODELS = Path(__file__).resolve().parents[3] / "examples" / "models"
architectures: Any = example("architectures")
training: Any = example("train_denoiser")


def tiny() -> Any:
    """Settings of a transformer that trains in a second."""
    return training.Setting(
        "digits", 4, architectures.DiTShape(2, 2, 4, 2), steps=6, batch=4, lr=1e-2, warmup=2
    )


def noise(count: int) -> Any:
    """Four-pixel images that say nothing."""
    images = np.random.Generator(np.random.Philox(0)).normal(size=(count, 1, 4, 4)).astype(np.float32)
    return example("datasets").ImageSet(images, np.arange(count) % architectures.NUM_CLASSES)


@pytest.mark.parametrize("name", sorted(folder.name for folder in MODELS.iterdir()))
def test_shipped_weights_are_of_the_model_that_the_script_trains(name: str) -> None:
    setting = training.SETTINGS[name]
    folder = MODELS / name / setting.shape.component
    shipped = AutoModel.from_pretrained(str(folder), use_safetensors=True, low_cpu_mem_usage=False)
    built = setting.shape.build(setting.size)
    assert type(built) is type(shipped)
    shapes = [{k: tuple(v.shape) for k, v in m.state_dict().items()} for m in (built, shipped)]
    assert shapes[0] == shapes[1]
    kept = json.loads((MODELS / name / "training.json").read_text())["setting"]
    assert kept == json.loads(json.dumps(setting.document()))


def test_an_untrained_transformer_predicts_nothing_and_its_blocks_change_nothing() -> None:
    model = tiny().shape.build(4)
    x, t, labels = torch.randn(3, 1, 4, 4), torch.tensor([0, 500, 999]), torch.tensor([0, 9, 10])
    states: list[torch.Tensor] = []
    for part in (model.pos_embed, *model.transformer_blocks):
        part.register_forward_hook(lambda _, __, out: states.append(out))
    with torch.no_grad():
        assert not model(x, t, class_labels=labels).sample.any()
    assert len(states) == 3
    assert all(torch.equal(state, states[0]) for state in states)


def test_training_repeats_and_drops_classes_in_all_blocks_alike(tmp_path: Path) -> None:
    models = [training.train(tiny(), noise(16), tmp_path / str(i), 0)[0] for i in range(2)]
    states = [m.state_dict() for m in models]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert any(states[0][k].any() for k in states[0] if k.startswith("proj_out_2"))
    assert not models[0].training
    assert (tmp_path / "0" / "transformer" / "diffusion_pytorch_model.safetensors").is_file()


def test_images_repeat_under_a_seed(tmp_path: Path) -> None:
    model, _ = training.train(tiny(), noise(16), tmp_path, 0)
    scheduler = training.DDPMScheduler.from_pretrained(tmp_path / "scheduler")
    first, again, other = (
        training.generate(model, scheduler, torch.tensor([1, 2]), steps=3, seed=s) for s in (5, 5, 6)
    )
    assert first.shape == (2, 1, 4, 4)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
