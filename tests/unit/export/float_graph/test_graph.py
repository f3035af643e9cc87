from __future__ import annotations

import logging
import re
from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from torch import nn
from torch.fx import config as fx_config

from gacq_deploy.build_trt.float16.convert import to_half
from gacq_deploy.engines.open import open_engine
from gacq_deploy.errors import ExportError
from gacq_deploy.export.float_graph import graph as graph_module
from gacq_deploy.export.float_graph.capture import check_untouched, weightless_twin
from gacq_deploy.export.float_graph.graph import FloatGraph, check_layer_weights, float_graph
from gacq_deploy.export.qdq import insert_qdq
from gacq_deploy.export.stage import euclidean_error
from gacq_deploy.graph.index import HALVES, MODULE_KEY, GraphIndex, module_of, opset_of
from gacq_deploy.models.base import Denoiser
from gacq_deploy.models.half_storage import keep_half
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


def _layers(denoiser: Denoiser) -> set[str]:
    return {n for n, m in denoiser.module.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


@pytest.fixture
def captured(denoiser: Denoiser) -> FloatGraph:
    # by its module: made once for all tests
    return graph_module.weightless_graph(denoiser)


def test_every_layer_has_its_nodes(denoiser: Denoiser, captured: FloatGraph) -> None:
    layers = _layers(denoiser)
    mapped = {module_of(n) for n in captured.model.graph.node if n.op_type in ("Conv", "Gemm", "MatMul")}
    assert layers <= mapped
    assert check_layer_weights(captured, denoiser.module) == len(layers)


@pytest.mark.parametrize("op_type", ["Conv", "Gemm", "MatMul"])
def test_a_node_that_reads_another_weight_is_found(
    denoiser: Denoiser, captured: FloatGraph, op_type: str
) -> None:
    nodes = GraphIndex(captured.model).of_type(op_type)
    node, other = [n for n in nodes if n.input[1] in captured.views][:2]
    node.input[1] = other.input[1]
    with pytest.raises(ExportError, match=f"mapped to '{re.escape(str(module_of(node)))}'"):
        check_layer_weights(captured, denoiser.module)


def test_a_node_that_lost_its_module_is_found(denoiser: Denoiser, captured: FloatGraph) -> None:
    node = next(n for n in captured.model.graph.node if n.op_type == "Conv")
    module = module_of(node)
    del node.metadata_props[:]
    with pytest.raises(ExportError, match=f"computes layer '{module}' but lost its name"):
        check_layer_weights(captured, denoiser.module)


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


class _Asked(_Stubborn):
    """Keeps what torch would note when it is called, and cannot be captured."""

    noted: ClassVar[list[bool]] = []

    def forward(self, *_: torch.Tensor, **__: object) -> tuple[torch.Tensor]:
        self.noted.append(not fx_config.do_not_emit_stack_traces)
        raise RuntimeError("enough")


@pytest.mark.parametrize("off", [False, True])
def test_no_line_is_noted_and_the_switch_is_left_as_it_was(
    denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch, off: bool
) -> None:
    monkeypatch.setattr(fx_config, "do_not_emit_stack_traces", off)
    monkeypatch.setattr(_Asked, "noted", [])
    with pytest.raises(ExportError, match="enough"):
        float_graph(Denoiser(_Asked(denoiser.module.config), denoiser.record, denoiser.family))
    assert _Asked.noted == [False]
    assert fx_config.do_not_emit_stack_traces == off


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_weights_keep_the_type_that_they_are_stored_in(dtype: torch.dtype) -> None:
    """And the graph computes what the same values stored as float32 would, to the bit."""
    half, wide = tiny_denoiser(seed=3), tiny_denoiser(seed=3)
    half.module.to(dtype)
    wide.module.to(dtype).float()
    keep_half(half.module)
    stored, plain = float_graph(half), float_graph(wide)
    index = GraphIndex(stored)
    kinds = {t.name: t.data_type for t in stored.graph.initializer}
    matrices = [n for n, p in wide.module.named_parameters() if p.ndim > 1]
    assert sum(kind in HALVES for kind in kinds.values()) == len(matrices)
    for node in index.of_type("Conv", "Gemm", "MatMul"):
        if node.input[1] in index.producers and index.producers[node.input[1]].op_type == "Cast":
            np.testing.assert_array_equal(
                index.constant(node.input[1]), GraphIndex(plain).constant(node.input[1])
            )
    artifact = tiny_artifact(wide)
    inputs = {k: v.numpy() for k, v in half.example_inputs(2).items()}
    quantize = partial(insert_qdq, artifact=artifact, placement="input")
    for made in (lambda m: m, quantize, lambda m: to_half(m).model, lambda m: to_half(quantize(m)).model):
        outputs = []
        for graph in (made(stored), made(plain)):
            with open_engine("ort-cpu", graph.SerializeToString(), threads=1, optimize=False) as engine:
                outputs.append(engine.run(inputs)["output"])
        np.testing.assert_array_equal(*outputs)
    quantized = quantize(stored)
    left = {module_of(n) for n in quantized.graph.node if n.op_type == "Cast"} - {None}
    assert not left & set(artifact.plan.modules), "a float weight came along with its codes"


def test_no_weight_is_read_to_make_a_graph(denoiser: Denoiser) -> None:
    """A model without memory for its weights gives the graph of one that has them."""
    twin = replace(denoiser, module=weightless_twin(denoiser.module))
    made, known = graph_module.weightless_graph(twin), graph_module.weightless_graph(denoiser)
    assert made.model.SerializeToString(deterministic=True) == known.model.SerializeToString(
        deterministic=True
    )
    assert made.views == known.views


def test_a_parameter_with_two_names_is_stored_once() -> None:
    denoiser = tiny_denoiser(seed=1)
    layers = [m for n, m in denoiser.module.named_modules() if n.endswith("conv2")]
    pair = next(p for p in combinations(layers, 2) if p[0].weight.shape == p[1].weight.shape)
    pair[1].weight = pair[0].weight
    captured = graph_module.weightless_graph(denoiser)
    plain = [view.parameter for view in captured.views.values() if not view.steps]
    assert len(plain) == len(set(plain))
    assert check_layer_weights(captured, denoiser.module) == len(_layers(denoiser))
