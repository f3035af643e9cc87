"""The readers of a model's folder: configurations, schedulers, the index of its pipeline and of its shards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import PNDMScheduler, UNet2DModel
from safetensors.numpy import save_file

from gacq_deploy.errors import GacqError
from gacq_deploy.models.components import check_components
from gacq_deploy.models.folders import check_pipeline, check_weights, read_pipeline, stored_shapes
from gacq_deploy.models.source import find_source, load_module, make_denoiser
from gacq_deploy.recipe.sections import ModelSection
from gacq_deploy.sampling.loop import model_sampler
from tests.support.fuzz.inputs import Input
from tests.support.fuzz.reader import FuzzedReader, Opened
from tests.support.fuzz.record_rows import TRIES, restructured
from tests.support.models.configurations import MODELS
from tests.support.models.pipelines import SD_BETAS, make_stable_diffusion
from tests.support.models.tiny import SCHEDULER, random_model

INDEX: dict[str, Any] = {
    "metadata": {"total_size": 8},
    "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"},
}


def _open_configurations(folder: Path) -> Opened:
    healthy = []
    for kind, config in MODELS.items():
        place = folder / kind.__name__
        random_model(kind, config, seed=0).save_pretrained(place)
        healthy.append(Input(f"{kind.__name__}.json", (place / "config.json").read_bytes()))

    def read(tried: Input) -> None:
        place = folder / tried.kind.removesuffix(".json")
        (place / "config.json").write_bytes(tried.data)
        load_module(find_source(ModelSection(source=str(place))))

    return Opened(tuple(healthy), read)


def _open_scheduler(folder: Path) -> Opened:
    path = folder / "scheduler" / "scheduler_config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(SCHEDULER), encoding="utf-8")
    random_model(UNet2DModel, MODELS[UNet2DModel], seed=0).save_pretrained(folder)
    source = find_source(ModelSection(source=str(folder)))
    module = load_module(source)

    def read(tried: Input) -> None:
        path.write_bytes(tried.data)
        model_sampler(make_denoiser(source, module).record, 2)

    healthy = (SCHEDULER, PNDMScheduler(**SD_BETAS, skip_prk_steps=True).config)
    return Opened(tuple(Input("json", json.dumps(dict(config)).encode()) for config in healthy), read)


def _open_pipeline(folder: Path) -> Opened:
    make_stable_diffusion(folder, safety_checker=False)
    healthy = {
        path.relative_to(folder).as_posix().replace("/", "-"): (path, path.read_bytes())
        for path in sorted(folder.rglob("*.json"))
    }

    def read(tried: Input) -> None:
        path, own = healthy[tried.kind]
        path.write_bytes(tried.data)
        try:
            index = read_pipeline(folder)
            check_pipeline(folder, index)
            check_components(folder, index)
        finally:
            path.write_bytes(own)

    return Opened(tuple(Input(kind, data) for kind, (_, data) in healthy.items()), read)


def _open_shards(folder: Path) -> Opened:
    path = folder / "model.safetensors.index.json"
    for name in INDEX["weight_map"].values():
        save_file({"a": np.ones(1, np.float32)}, folder / name)

    def read(tried: Input) -> None:
        path.write_bytes(tried.data)
        check_weights(folder)
        stored_shapes(folder)

    return Opened((Input("json", json.dumps(INDEX).encode()),), read)


MODEL_FILES: Mapping[str, FuzzedReader] = {
    "model-config": FuzzedReader(
        _open_configurations, restructured, GacqError, tries=24, most_calls=8_000_000
    ),
    "scheduler-config": FuzzedReader(_open_scheduler, restructured, GacqError, tries=60),
    "pipeline": FuzzedReader(_open_pipeline, restructured, GacqError, tries=24, most_calls=2_000_000),
    "weight-index": FuzzedReader(_open_shards, restructured, GacqError, tries=TRIES),
}
