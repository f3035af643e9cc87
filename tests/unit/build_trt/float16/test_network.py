"""The half form of a Q/DQ graph in the real compiler: the same layers in INT8, the rest in FP16."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import pytest

from gacq_deploy.build_trt.compiler import Compiled, compile_graph
from gacq_deploy.build_trt.float16.convert import to_half
from gacq_deploy.build_trt.layers import int8_nodes
from gacq_deploy.build_trt.options import CompileOptions, ShapeRange
from gacq_deploy.export.float_graph.graph import float_graph
from gacq_deploy.export.qdq import insert_qdq
from gacq_deploy.lint.lint import predict_layers
from gacq_deploy.models.base import Denoiser
from tests.support.models.tiny import tiny_artifact, tiny_denoiser

pytestmark = [pytest.mark.rtx, pytest.mark.slow, pytest.mark.usefixtures("warm_builds")]


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    return tiny_denoiser()


@pytest.fixture(scope="module")
def exported(denoiser: Denoiser) -> onnx.ModelProto:
    return float_graph(denoiser)


@pytest.fixture(scope="module")
def quantized(denoiser: Denoiser, exported: onnx.ModelProto) -> onnx.ModelProto:
    return insert_qdq(exported, tiny_artifact(denoiser), placement="input")


def build(model: onnx.ModelProto, folder: Path) -> Compiled:
    folder.mkdir()
    onnx.save_model(model, str(folder / "graph.onnx"))
    profile = {}
    for info in model.graph.input:
        shape = [d.dim_value for d in info.type.tensor_type.shape.dim]
        sizes = {key: (rows, *shape[1:]) for key, rows in (("min", 1), ("opt", 2), ("max", 4))}
        profile[info.name] = ShapeRange.model_validate(sizes)
    options = CompileOptions(backend="tensorrt-rtx", profiles=(profile,))
    return compile_graph(folder / "graph.onnx", options, folder=folder)


def test_half_form_runs_the_same_layers_in_int8(quantized: onnx.ModelProto, tmp_path: Path) -> None:
    half = to_half(quantized).model
    planned = {name for name, outcome in predict_layers(quantized).items() if outcome == "int8"}
    wide, narrow = build(quantized, tmp_path / "float"), build(half, tmp_path / "half")
    assert planned
    assert int8_nodes(wide.layers) & planned == planned
    assert int8_nodes(narrow.layers) & planned == planned
    others = Counter(layer.inputs[0] for layer in narrow.layers if layer.is_product and not layer.int8)
    assert set(others) == {"Half"}


def test_float_twin_computes_every_product_in_half(exported: onnx.ModelProto, tmp_path: Path) -> None:
    baseline = build(to_half(exported).model, tmp_path / "baseline")
    products = [layer.inputs[0] for layer in baseline.layers if layer.is_product]
    assert products
    assert set(products) == {"Half"}
    log = (tmp_path / "baseline" / "builder.log").read_text(encoding="utf-8").splitlines()
    assert not [line for line in log if line.startswith(("ERROR", "WARNING")) and "Int64 binding" not in line]
