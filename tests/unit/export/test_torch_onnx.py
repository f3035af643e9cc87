from __future__ import annotations

import logging
import re
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

from gacq_deploy.engines.open import open_engine
from gacq_deploy.errors import ExportError
from gacq_deploy.export.qdq import insert_qdq
from gacq_deploy.export.stage import euclidean_error
from gacq_deploy.export.torch_onnx import check_exported_weights, check_untouched, float_graph
from gacq_deploy.graph.index import MODULE_KEY, GraphIndex, module_of, opset_of
from gacq_deploy.models.base import Denoiser
from tests.support.models.tiny import WITHOUT_ATTENTION, tiny_artifact, tiny_denoiser


def _answers(denoiser: Denoiser, inputs: dict[str, torch.Tensor]) -> np.ndarray:
    rest = {k: v for k, v in inputs.items() if k not in ("sample", "timestep")}
    with torch.no_grad():
        return denoiser(inputs["sample"], inputs["timestep"], rest).numpy()


def test_inputs_and_output_follow_the_contract(exported: onnx.ModelProto) -> None:
    def facts(values: list[onnx.ValueInfoProto]) -> list[tuple[str, int, list[str | int]]]:
        types = [(v.name, v.type.tensor_type) for v in values]
        return [(n, t.elem_type, [d.dim_param or d.dim_value for d in t.shape.dim]) for n, t in types]

    assert facts(list(exported.graph.input)) == [
        ("sample", TensorProto.FLOAT, ["batch", 1, 8, 8]),
        ("timestep", TensorProto.INT64, ["batch"]),
        ("class_labels", TensorProto.INT64, ["batch"]),
    ]
    assert facts(list(exported.graph.output)) == [("output", TensorProto.FLOAT, ["batch", 1, 8, 8])]
    assert opset_of(exported) == 20
    onnx.checker.check_model(exported, full_check=True)


@pytest.mark.parametrize("batch", [1, 2, 5, 70])
def test_graph_computes_what_torch_computes_at_any_batch(
    denoiser: Denoiser, exported: onnx.ModelProto, batch: int
) -> None:
    inputs = denoiser.example_inputs(batch, seed=batch)
    with open_engine("ort-cpu", exported.SerializeToString(), threads=1) as engine:
        output = engine.run({k: v.numpy() for k, v in inputs.items()})["output"]
    assert euclidean_error(output, _answers(denoiser, inputs)) < 1e-5


def test_modules_are_the_only_metadata(exported: onnx.ModelProto) -> None:
    graph = exported.graph
    holders = (exported, graph, *graph.initializer, *graph.input, *graph.output, *graph.value_info)
    assert not any(h.metadata_props or h.doc_string for h in holders)
    assert {p.key for n in graph.node for p in n.metadata_props} == {MODULE_KEY}
    assert not any(n.doc_string for n in graph.node)
    assert not re.search(rb"\.py\b|/site-packages|/home|Traceback", exported.SerializeToString())


def test_every_layer_has_its_nodes(denoiser: Denoiser, exported: onnx.ModelProto) -> None:
    layers = {n for n, m in denoiser.module.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    mapped = {module_of(n) for n in exported.graph.node if n.op_type in ("Conv", "Gemm", "MatMul")}
    assert layers <= mapped
    assert check_exported_weights(exported, denoiser.module) == len(layers)


def _flip_a_bit(model: onnx.ModelProto, op_type: str) -> str:
    index = GraphIndex(model)
    node = next(n for n in index.of_type(op_type) if n.input[1] in index.initializers)
    stored = index.initializers[node.input[1]]
    array = numpy_helper.to_array(stored).copy()
    array.view(np.uint32).reshape(-1)[-1] ^= 1
    stored.CopyFrom(numpy_helper.from_array(array, stored.name))
    module = module_of(node)
    assert module is not None
    return module


@pytest.mark.parametrize("op_type", ["Conv", "Gemm", "MatMul"])
def test_one_flipped_weight_bit_is_found(
    denoiser: Denoiser, float_model: onnx.ModelProto, op_type: str
) -> None:
    module = _flip_a_bit(float_model, op_type)
    with pytest.raises(ExportError, match=f"mapped to '{re.escape(module)}'"):
        check_exported_weights(float_model, denoiser.module)


def test_a_node_that_lost_its_module_is_found(denoiser: Denoiser, float_model: onnx.ModelProto) -> None:
    node = next(n for n in float_model.graph.node if n.op_type == "Conv")
    module = module_of(node)
    del node.metadata_props[:]
    with pytest.raises(ExportError, match=f"computes layer '{module}' but lost its name"):
        check_exported_weights(float_model, denoiser.module)


def test_a_hook_left_behind_stops_the_export() -> None:
    denoiser = tiny_denoiser()
    layer = denoiser.module.get_submodule("mid_block.resnets.0.conv1")
    for register in (layer.register_forward_hook, layer.register_forward_pre_hook):
        handle = register(lambda *_: None)
        with pytest.raises(ExportError, match=r"mid_block\.resnets\.0\.conv1' still carries forward"):
            float_graph(denoiser)
        handle.remove()
    check_untouched(denoiser.module)
    layer.forward = layer.forward
    with pytest.raises(ExportError, match="replaced forward"):
        float_graph(denoiser)


class _Stubborn(nn.Module):
    """Decides on values: no exporter can follow."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def forward(self, sample: torch.Tensor, *_: torch.Tensor, **__: object) -> tuple[torch.Tensor]:
        return (sample * 2 if sample.sum().item() > 0 else sample,)


def test_a_model_that_cannot_be_captured_is_refused(denoiser: Denoiser) -> None:
    broken = Denoiser(_Stubborn(denoiser.module.config), denoiser.record, denoiser.family)
    with pytest.raises(ExportError, match="torch could not export the model"):
        float_graph(broken)


@pytest.mark.slow
def test_export_is_silent_and_gives_the_same_bytes(
    denoiser: Denoiser,
    exported: onnx.ModelProto,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        again = float_graph(denoiser)
    assert again.SerializeToString(deterministic=True) == exported.SerializeToString(deterministic=True)
    assert not caplog.records
    assert capfd.readouterr().out == ""


@pytest.mark.slow
def test_a_model_without_classes_and_with_padding_folded_into_convolutions() -> None:
    denoiser = tiny_denoiser(classes=None, downsample_padding=0, **WITHOUT_ATTENTION)
    graph = float_graph(denoiser, opset=19)
    assert [i.name for i in graph.graph.input] == ["sample", "timestep"]
    assert opset_of(graph) == 19
    artifact = tiny_artifact(denoiser)
    quantized = insert_qdq(graph, artifact, placement="output")
    inputs = {k: v.numpy() for k, v in denoiser.example_inputs(3).items()}
    with open_engine("ort-cpu", quantized.SerializeToString(), threads=1) as engine:
        output = engine.run(inputs)["output"]
    expected = _answers(denoiser, denoiser.example_inputs(3))
    assert 0 < euclidean_error(output, expected) < 0.2
