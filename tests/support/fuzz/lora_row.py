"""The reader of a LoRA: a safetensors file whose header names factors, and in its metadata how they are to be read."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

from diffusers import StableDiffusionPipeline, UNet2DConditionModel

from gacq_deploy.errors import GacqError
from gacq_deploy.models.lora import fuse_loras, lora_file
from gacq_deploy.recipe.sections import LoraSection
from tests.support.fuzz.document_changes import changed_document
from tests.support.fuzz.inputs import Input
from tests.support.fuzz.reader import FuzzedReader, Opened
from tests.support.fuzz.tensor_files import with_changed_header
from tests.support.models.loras import make_lora
from tests.support.models.pipelines import make_stable_diffusion


def _open(folder: Path) -> Opened:
    make_stable_diffusion(folder / "pipeline", safety_checker=False)
    file = make_lora(folder / "pipeline", folder, rank=1, targets=("to_q",))
    module = UNet2DConditionModel.from_pretrained(folder / "pipeline" / "unet")
    section = LoraSection(source=str(file))

    def read(tried: Input) -> None:
        file.write_bytes(tried.data)
        lora_file(section)
        fuse_loras(copy.deepcopy(module), [section], StableDiffusionPipeline)

    return Opened((Input("safetensors", file.read_bytes()),), read)


def _restructure(rng: Random, tried: Input) -> Input:
    """Change what the header says, or what the metadata in it say as text."""
    return with_changed_header(rng, tried, _changed_header)


def _changed_header(rng: Random, header: dict[str, Any]) -> str:
    metadata = header["__metadata__"]
    if rng.random() < 0.5:
        name = max(metadata, key=lambda key: len(metadata[key]))
        metadata[name] = changed_document(rng, json.loads(metadata[name]))
        return json.dumps(header)
    return changed_document(rng, header)


LORA: Mapping[str, FuzzedReader] = {
    "lora": FuzzedReader(_open, _restructure, GacqError, tries=24, most_calls=4_000_000)
}
