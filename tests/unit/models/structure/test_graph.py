"""The observed graph is the model's own: blocks, order, data flow, ties."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gacq_deploy.calibration.planning import make_plan
from gacq_deploy.errors import RecipeError
from gacq_deploy.models.structure.blocks import cut_blocks
from gacq_deploy.models.structure.graph import ModelGraph, trace_model
from gacq_deploy.recipe.load import load_recipe
from gacq_deploy.spec import Site
from tests.support.models.tiny import tiny_denoiser


@pytest.fixture(scope="module")
def graph() -> ModelGraph:
    return trace_model(tiny_denoiser())


def test_every_parameter_lies_in_exactly_one_block() -> None:
    denoiser = tiny_denoiser()
    blocks = cut_blocks(denoiser.module)
    owners = {
        name: [b for b in blocks if name.startswith(f"{b}.")]
        for name, _ in denoiser.module.named_parameters()
    }
    assert all(len(blocks) == 1 for blocks in owners.values()), owners


def test_blocks_come_in_execution_order_and_depend_only_on_earlier_ones(graph: ModelGraph) -> None:
    names = [b.name for b in graph.blocks]
    assert (
        names.index("conv_in") < names.index("down_blocks.0.resnets.0") < names.index("mid_block.resnets.0")
    )
    assert names[-1] == "conv_out"
    for index, block in enumerate(graph.blocks):
        assert all(i < index for i in block.depends_on)
    last = graph.blocks[-1]
    assert last.last_use == len(graph.blocks)


def test_skip_connections_are_seen_in_the_data_flow(graph: ModelGraph) -> None:
    position = {b.name: i for i, b in enumerate(graph.blocks)}
    last_up = graph.blocks[position["up_blocks.1.resnets.1"]]
    assert position["conv_in"] in last_up.depends_on  # the outermost skip
    assert graph.blocks[position["conv_in"]].last_use == position["up_blocks.1.resnets.1"]


def test_sites_of_one_tensor_and_of_one_concat_are_tied(graph: ModelGraph) -> None:
    attention = "down_blocks.1.attentions.0"
    q, k, v = (Site(f"{attention}.to_{c}", "input") for c in "qkv")
    assert graph.shared_tensor[k] == graph.shared_tensor[v] == q
    assert graph.ties[q] == graph.ties[k] == graph.ties[v]
    # the downsampled tensor is read by the next block's shortcut and concatenated for an up block's shortcut
    down, up = (
        Site("down_blocks.1.resnets.0.conv_shortcut", "input"),
        Site("up_blocks.0.resnets.1.conv_shortcut", "input"),
    )
    assert graph.ties[down] == graph.ties[up]
    assert graph.shared_tensor[down] != graph.shared_tensor[up]
    conv = Site("mid_block.resnets.0.conv1", "input")
    assert list(graph.ties.values()).count(graph.ties[conv]) == 1


def test_convolutions_have_an_output_site_and_linears_do_not(graph: ModelGraph) -> None:
    roles = {s.module: [t.role for t in graph.sites if t.module == s.module] for s in graph.sites}
    assert roles["mid_block.resnets.0.conv1"] == ["weight", "input", "output"]
    assert roles["mid_block.attentions.0.to_q"] == ["weight", "input"]


def test_tracing_leaves_the_model_as_it_was() -> None:
    denoiser = tiny_denoiser()
    trace_model(denoiser)
    for module in denoiser.module.modules():
        assert "forward" not in module.__dict__
        assert not module._forward_pre_hooks
    assert all(p.grad is None for p in denoiser.module.parameters())


def test_an_unconditional_model_has_no_class_block() -> None:
    assert "class_embedding" not in [b.name for b in trace_model(tiny_denoiser(classes=None)).blocks]


def test_a_layer_that_is_called_twice_has_to_stay_float() -> None:
    denoiser = tiny_denoiser()

    class Twice(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(self.inner(x) * 0 + x)

    resnet = denoiser.module.get_submodule("mid_block.resnets.0")
    resnet.conv2 = Twice(resnet.get_submodule("conv2"))
    graph = trace_model(denoiser)
    assert graph.repeated == {"mid_block.resnets.0.conv2.inner"}
    everything = "quantization.rules=[{match: '*', bits: 8}]"
    with pytest.raises(RecipeError, match=r"mid_block.resnets.0.conv2.inner' is called twice") as caught:
        make_plan(load_recipe("fashion-w8a8", [everything]), graph)
    assert "ignore: true" in caught.value.hint
    float_rule = "{match: 'mid_block.resnets.0.conv2.inner', ignore: true}"
    plan = make_plan(load_recipe("fashion-w8a8", [everything.replace("]", f", {float_rule}]")]), graph)
    assert "mid_block.resnets.0.conv1" in plan.modules
