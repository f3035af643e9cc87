"""One export of the tiny UNet serves every unit test: the exporter takes seconds."""

from __future__ import annotations

import onnx
import pytest
import torch

from gacq_deploy.artifact.artifact import CalibrationArtifact
from gacq_deploy.export.float_graph.graph import float_graph
from gacq_deploy.models.base import Denoiser
from tests.support.models.tiny import tiny_artifact, tiny_denoiser


@pytest.fixture(scope="session")
def denoiser() -> Denoiser:
    torch.set_num_threads(1)
    return tiny_denoiser()


@pytest.fixture(scope="session")
def exported(denoiser: Denoiser) -> onnx.ModelProto:
    return float_graph(denoiser)


@pytest.fixture
def float_model(exported: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(exported)
    return copy


@pytest.fixture(scope="session")
def artifact(denoiser: Denoiser) -> CalibrationArtifact:
    return tiny_artifact(denoiser)
