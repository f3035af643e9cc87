"""A graph with open height and width computes what torch computes at every size that the model takes."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from gacq_deploy.backends.base import Engine
from gacq_deploy.engines.open import open_engine
from gacq_deploy.errors import EngineError, ExportError
from gacq_deploy.export.cpu_flavour import to_cpu_flavour
from gacq_deploy.export.float_graph.graph import float_graph
from gacq_deploy.export.qdq import insert_qdq
from gacq_deploy.export.record import load_export
from gacq_deploy.export.stage import euclidean_error, export_onnx
from gacq_deploy.graph.dimensions import name_dimensions
from gacq_deploy.graph.header import size_multiple
from gacq_deploy.lint.lint import errors_in, lint_graph
from gacq_deploy.models.base import Denoiser
from gacq_deploy.run_directory import RunDirectory
from tests.support.models.architectures import small_dit, small_sd_unet
from tests.support.models.tiny import WITHOUT_ATTENTION, tiny_artifact, tiny_denoiser, tiny_run

THREE_LEVELS: dict[str, Any] = {
    "block_out_channels": (8, 16, 16),
    "down_block_types": ("DownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "UpBlock2D"),
    "add_attention": False,
}
ONE_LEVEL: dict[str, Any] = {
    "block_out_channels": (32,),
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
}


@pytest.fixture(scope="module")
def open_graph(denoiser: Denoiser) -> onnx.ModelProto:
    return float_graph(denoiser, dynamic_resolution=True)


def _inputs(denoiser: Denoiser, rows: int, height: int, width: int) -> dict[str, torch.Tensor]:
    inputs = denoiser.example_inputs(rows, seed=rows)
    generator = torch.Generator().manual_seed(height)
    sample = torch.randn(rows, denoiser.record.sample_shape[0], height, width, generator=generator)
    return {**inputs, "sample": sample}


def _distance(engine: Engine, denoiser: Denoiser, inputs: Mapping[str, torch.Tensor]) -> float:
    rest = {k: v for k, v in inputs.items() if k not in ("sample", "timestep")}
    with torch.no_grad():
        expected = denoiser(inputs["sample"], inputs["timestep"], rest).numpy()
    return euclidean_error(engine.run({k: v.numpy() for k, v in inputs.items()})["output"], expected)


def _dims(value: onnx.ValueInfoProto) -> list[str | int]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def _check_sizes(denoiser: Denoiser, model: onnx.ModelProto) -> None:
    step = size_multiple(model)
    own = denoiser.record.sample_shape[1]
    with open_engine("ort-cpu", model.SerializeToString(), threads=1) as engine:
        for rows, height, width in (
            (3, own, own),
            (1, step, step),
            (2, 3 * step, 5 * step),
            (1, 4 * own, own),
        ):
            assert _distance(engine, denoiser, _inputs(denoiser, rows, height, width)) < 1e-5, (height, width)


def test_every_size_gives_what_torch_gives(denoiser: Denoiser, open_graph: onnx.ModelProto) -> None:
    _check_sizes(denoiser, open_graph)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "multiple"),
    [
        (lambda: small_sd_unet(**ONE_LEVEL), 1),
        (lambda: tiny_denoiser(downsample_type="resnet", upsample_type="resnet", **THREE_LEVELS), 4),
        (lambda: tiny_denoiser(classes=None, downsample_padding=0, **WITHOUT_ATTENTION), 2),
    ],
    ids=["text", "three levels of resnets", "padding"],
)
def test_every_unet_at_every_size(make: Any, multiple: int) -> None:
    denoiser = make()
    model = float_graph(denoiser, dynamic_resolution=True)
    assert size_multiple(model) == multiple
    _check_sizes(denoiser, model)


def test_height_and_width_have_plain_names(exported: onnx.ModelProto, open_graph: onnx.ModelProto) -> None:
    assert _dims(open_graph.graph.input[0]) == ["batch", 1, "height", "width"]
    assert _dims(open_graph.graph.output[0]) == ["batch", 1, "height", "width"]
    assert [_dims(value) for value in open_graph.graph.input[1:]] == [["batch"], ["batch"]]
    named = {d for v in open_graph.graph.value_info for d in _dims(v) if isinstance(d, str)}
    assert {"batch", "height", "width", "(height/2)", "(width/2)"} <= named
    onnx.checker.check_model(open_graph, full_check=True)
    assert (size_multiple(open_graph), size_multiple(exported)) == (2, 1)
    assert not exported.metadata_props


@pytest.mark.parametrize("engine", ["ort-cpu", "openvino"])
def test_a_size_between_the_multiples_is_refused(
    denoiser: Denoiser, open_graph: onnx.ModelProto, engine: str
) -> None:
    inputs = {k: v.numpy() for k, v in _inputs(denoiser, 2, 9, 8).items()}
    with (
        open_engine(engine, open_graph.SerializeToString(), threads=1) as opened,
        pytest.raises(EngineError, match=r"multiples of 2 for \[9, 8\]"),
    ):
        opened.run(inputs)


def test_quantized_graphs_stay_open(denoiser: Denoiser, open_graph: onnx.ModelProto) -> None:
    artifact = tiny_artifact(denoiser)
    canonical = insert_qdq(open_graph, artifact, placement="input")
    cpu = to_cpu_flavour(insert_qdq(open_graph, artifact, placement="output"))
    for model, target in ((canonical, "tensorrt"), (canonical, "openvino"), (cpu, "ort-cpu")):
        assert not errors_in(lint_graph(model, target=target))
    for model in (canonical, cpu):
        assert size_multiple(model) == 2
        with open_engine("ort-cpu", model.SerializeToString(), threads=1) as engine:
            for height, width in ((8, 8), (16, 12)):
                assert 0 < _distance(engine, denoiser, _inputs(denoiser, 3, height, width)) < 0.2


def test_positional_embeddings_hold_one_size() -> None:
    with pytest.raises(ExportError, match="positional embeddings are stored for 8x8") as caught:
        float_graph(small_dit(), dynamic_resolution=True)
    assert "export.dynamic_resolution" in caught.value.hint


def test_the_models_own_size_must_be_a_multiple() -> None:
    with pytest.raises(ExportError, match="multiples of 4, and its own size is 10x10"):
        float_graph(tiny_denoiser(sample_size=10, **THREE_LEVELS), dynamic_resolution=True)


def test_expressions_are_written_in_the_plain_names() -> None:
    dims = (["s0", 4, "8*s1", "s10"], ["4*s1*s10", "s1", "s10 + s0"])
    values = [helper.make_tensor_value_info(f"v{i}", TensorProto.FLOAT, d) for i, d in enumerate(dims)]
    model = helper.make_model(helper.make_graph([], "g", values[:1], [], value_info=values[1:]))
    name_dimensions(model)
    assert _dims(model.graph.input[0]) == ["batch", 4, "height", "width"]
    assert _dims(model.graph.value_info[0]) == ["4*(height/8)*width", "(height/8)", "width + batch"]


@pytest.mark.slow
def test_a_run_exported_again_with_open_sizes(tmp_path: Path) -> None:
    closed = tiny_run(tmp_path)
    before = export_onnx(closed, targets=["tensorrt"])
    shutil.copytree(closed.root, tmp_path / "copy")
    directory = RunDirectory(tmp_path / "copy")
    recipe = directory.load_recipe()
    export = recipe.export.model_copy(update={"dynamic_resolution": True})
    recipe.model_copy(update={"export": export}).save(directory.recipe_path)
    record = export_onnx(directory, targets=["tensorrt"])
    assert record.settings_sha256 != before.settings_sha256
    assert record.self_check["float.onnx"] < 1e-5
    assert load_export(directory) == record == export_onnx(directory, targets=["tensorrt"])
    assert _dims(onnx.load(directory.int8_onnx).graph.input[0]) == ["batch", 1, "height", "width"]
