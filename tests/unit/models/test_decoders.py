"""A decoder is found beside the denoiser, and latents without one are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from gacq_deploy.errors import ModelError, UsageError
from gacq_deploy.models.decoders import find_decoder
from gacq_deploy.recipe.sections import ModelSection
from gacq_deploy.storage.documents import read_json
from gacq_deploy.storage.files import write_json
from tests.support.models.pipelines import make_ddim, make_dit, make_ldm

PIXELS, LATENTS = (3, 16, 16), (4, 8, 8)


def section_of(folder: Path | str) -> ModelSection:
    return ModelSection(source=str(folder))


def test_pipelines_name_their_decoder(tmp_path: Path) -> None:
    dit, ldm = make_dit(tmp_path / "dit"), make_ldm(tmp_path / "ldm")
    assert find_decoder(section_of(dit), LATENTS) == dit / "vae"
    assert find_decoder(section_of(ldm), PIXELS) == ldm / "vqvae"


def test_pixels_need_none(tmp_path: Path) -> None:
    for source in (
        make_ddim(tmp_path / "ddim"),
        "builtin:fashion16",
        "builtin:gone",
        tmp_path / "gone",
        "a/b",
    ):
        assert find_decoder(section_of(source), PIXELS) is None


def test_latents_without_a_pipeline_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Latents need their decoder.*neither a folder nor a hub id"):
        find_decoder(section_of(tmp_path / "gone"), LATENTS)
    with pytest.raises(UsageError, match=r"latents \[4, 8, 8\].*holds none"):
        find_decoder(section_of(make_ddim(tmp_path / "ddim")), LATENTS)


def test_a_decoder_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    folder = make_dit(tmp_path / "dit")
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ModelError, match="no weights"):
        find_decoder(section_of(folder), LATENTS)
    (folder / "vae" / "config.json").unlink()
    with pytest.raises(ModelError, match=r"'vae' has no config\.json"):
        find_decoder(section_of(folder), LATENTS)
    index = read_json(folder / "model_index.json", what="index", hint="")
    write_json(folder / "model_index.json", index | {"vae": [None, None]})
    with pytest.raises(UsageError, match="holds none"):
        find_decoder(section_of(folder), LATENTS)
