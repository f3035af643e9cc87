"""Latents become the images that the pipeline would show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DiTPipeline, LDMPipeline

from gacq_deploy.errors import ModelError
from gacq_deploy.generate.pipeline.decode import decode_latents
from gacq_deploy.storage.documents import read_json
from gacq_deploy.storage.files import write_json
from tests.support.models.pipelines import make_dit, make_ldm

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers'


def generators() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(2)]


def shown(images: np.ndarray) -> np.ndarray:
    return images.transpose(0, 2, 3, 1) / 2 + 0.5


def test_decodes_as_unconditional_latent_diffusion_does(tmp_path: Path) -> None:
    pipeline = LDMPipeline.from_pretrained(make_ldm(tmp_path))
    pipeline.set_progress_bar_config(disable=True)
    given = {"batch_size": 2, "num_inference_steps": 2, "output_type": "np"}
    expected = pipeline(generator=generators(), **given).images
    plain = DDIMPipeline(
        unet=pipeline.unet, scheduler=pipeline.scheduler
    )  # clips what it shows, so watch its steps
    plain.set_progress_bar_config(disable=True)
    step, states = plain.scheduler.step, []

    def watch(*args: object, **kwargs: object) -> object:
        answer = step(*args, **kwargs)
        states.append(answer.prev_sample)
        return answer

    plain.scheduler.step = watch
    plain(generator=generators(), **given)
    decoded = decode_latents(tmp_path / "vqvae", states[-1].numpy())
    assert expected.std() > 0.01
    np.testing.assert_allclose(shown(decoded), expected, atol=1e-4)


def test_decodes_as_dit_does_whatever_the_batch(tmp_path: Path) -> None:
    pipeline = DiTPipeline.from_pretrained(make_dit(tmp_path))
    latents = torch.randn((3, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    decoded = decode_latents(tmp_path / "vae", latents.numpy())
    np.testing.assert_allclose(decoded, expected.clamp(-1, 1).numpy(), atol=1e-4)
    np.testing.assert_array_equal(decode_latents(tmp_path / "vae", latents[1:2].numpy()), decoded[1:2])


def test_what_does_not_decode_is_refused(tmp_path: Path) -> None:
    vae = make_dit(tmp_path) / "vae"
    with pytest.raises(ModelError, match=r"does not decode latents \[5, 8, 8\]"):
        decode_latents(vae, np.zeros((1, 5, 8, 8), np.float32))
    config = read_json(vae / "config.json", what="config", hint="")
    write_json(vae / "config.json", config | {"_class_name": "NoSuchDecoder"})
    with pytest.raises(ModelError, match="'NoSuchDecoder' is no decoder"):
        decode_latents(vae, np.zeros((1, 4, 8, 8), np.float32))
