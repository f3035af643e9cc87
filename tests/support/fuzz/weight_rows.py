"""The readers of weights: of a model, of the parts of its pipeline, and the tensors that an artifact vouches for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from diffusers import UNet2DModel

from gacq_deploy.artifact.artifact import load_artifact
from gacq_deploy.errors import ArtifactError, GacqError
from gacq_deploy.models.components import check_components
from gacq_deploy.models.folders import check_pipeline, read_pipeline
from gacq_deploy.models.pipelines import open_pipeline
from gacq_deploy.models.source import find_source, load_module
from gacq_deploy.recipe.sections import ModelSection
from gacq_deploy.storage.digests import digest_bytes
from gacq_deploy.storage.sealed import write_sealed
from tests.support.fuzz.inputs import Input
from tests.support.fuzz.reader import FuzzedReader, Opened
from tests.support.fuzz.run_of_records import run_of_records
from tests.support.fuzz.tensor_files import head_of, with_changed_header
from tests.support.models.configurations import MODELS
from tests.support.models.pipelines import make_stable_diffusion
from tests.support.models.tiny import random_model


def _open_model(folder: Path) -> Opened:
    random_model(UNet2DModel, MODELS[UNet2DModel], seed=0).save_pretrained(folder)
    (file,) = folder.glob("*.safetensors")
    section = ModelSection(source=str(folder))

    def read(tried: Input) -> None:
        file.write_bytes(tried.data)
        load_module(find_source(section))

    return Opened((Input("safetensors", file.read_bytes()),), read)


def _open_pipeline(folder: Path) -> Opened:
    make_stable_diffusion(folder, safety_checker=False)
    files = {f"{path.parent.name}.safetensors": path for path in sorted(folder.rglob("*.safetensors"))}
    healthy = {kind: path.read_bytes() for kind, path in files.items()}
    # the tensors are larger than an input may be
    heads = {kind: head_of(data) for kind, data in healthy.items()}
    source = find_source(ModelSection(source=str(folder)))
    denoiser = load_module(source)

    def read(tried: Input) -> None:
        files[tried.kind].write_bytes(tried.data + healthy[tried.kind][len(heads[tried.kind]) :])
        try:
            index = read_pipeline(folder)
            check_pipeline(folder, index)
            check_components(folder, index)
            open_pipeline(source, denoiser)
        finally:
            files[tried.kind].write_bytes(healthy[tried.kind])

    return Opened(tuple(Input(kind, data) for kind, data in heads.items()), read)


def _open_artifact(folder: Path) -> Opened:
    run = run_of_records(folder)
    manifest = run.artifact / "manifest.json"
    document = json.loads(manifest.read_bytes())
    beside = {"build": document.pop("build")}
    del document["digest"]
    healthy = {
        name: (run.artifact / name).read_bytes()
        for name in document["files"]
        if name.endswith(".safetensors")
    }

    def read(tried: Input) -> None:
        name = tried.kind
        (run.artifact / name).write_bytes(tried.data)
        # whoever changes a file can change what is listed of it
        listed = {"sha256": digest_bytes(tried.data), "bytes": len(tried.data)}
        files = {**document["files"], name: {**document["files"][name], **listed}}
        try:
            write_sealed(manifest, {**document, "files": files}, beside=beside)
            load_artifact(run.artifact)
        finally:
            (run.artifact / name).write_bytes(healthy[name])

    return Opened(tuple(Input(name, data) for name, data in healthy.items()), read)


WEIGHTS: Mapping[str, FuzzedReader] = {
    "model-weights": FuzzedReader(_open_model, with_changed_header, GacqError, tries=8, most_calls=2_000_000),
    "pipeline-weights": FuzzedReader(
        _open_pipeline, with_changed_header, GacqError, tries=8, most_calls=2_000_000
    ),
    "artifact-tensors": FuzzedReader(_open_artifact, with_changed_header, ArtifactError, tries=24),
}
