"""A layer is unused if no path leads from its result to the model's output; in doubt it is used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gacq_deploy.calibration.planning import make_plan
from gacq_deploy.errors import RecipeError
from gacq_deploy.models.base import Denoiser
from gacq_deploy.models.structure.graph import trace_model
from gacq_deploy.models.structure.unused import find_unused
from gacq_deploy.progress import SilentReporter
from gacq_deploy.recipe.load import load_recipe
from gacq_deploy.recipe.sections import Recipe
from tests.support.models.joint_transformers import wrapped

Forward = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """As many linear layers as wanted and what a test does with them."""

    def __init__(self, forward: Forward, layers: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(layers)])
        self.register_buffer("kept", torch.zeros(2, 3, 4))
        self._forward = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)

    def __getitem__(self, number: int) -> nn.Module:
        return self.layers[number]


def denoiser(net: nn.Module, shape: tuple[int, ...] = (3, 4)) -> Denoiser:
    return wrapped(net.eval().requires_grad_(False), lambda m, sample, _t, _c: m(sample), shape)


def unused(forward: Forward, layers: int = 3) -> set[str]:
    found = find_unused(denoiser(Net(forward, layers)), [f"layers.{i}" for i in range(layers)])
    return {name.removeprefix("layers.") for name in found}


@given(st.data())
def test_in_any_graph_those_that_do_not_lead_to_the_output_are_unused(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 6))
    # tensor 0 is the input, tensor i + 1 the result of layer i
    reads = [data.draw(st.sets(st.integers(0, i), min_size=1)) for i in range(count)]
    output = data.draw(st.sets(st.integers(1, count), min_size=1))

    def forward(net: Net, x: Tensor) -> Tensor:
        tensors = [x]
        for number, sources in enumerate(reads):
            tensors.append(torch.tanh(net[number](torch.stack([tensors[s] for s in sources]).sum(0))))
        return torch.stack([tensors[t] for t in output]).sum(0)

    needed = set(output)
    for number in reversed(range(count)):
        if number + 1 in needed:
            needed |= reads[number]
    assert unused(forward, count) == {str(i) for i in range(count) if i + 1 not in needed}


def _without_gradients(net: Net, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = net[1](net[0](x))
    return net[2](x) + y


def _into_a_buffer(net: Net, x: Tensor) -> Tensor:
    kept = net[2](x)
    with torch.no_grad():
        kept[:, 1:] = net[1](net[0](x))[:, 1:]
    return kept


def _chosen_by_index(net: Net, x: Tensor) -> Tensor:
    return net[2](x)[torch.arange(len(x)), net[1](net[0](x)).argmax(-1)[:, 0] % 3][:, None].expand(-1, 3, -1)


USES: dict[str, Forward] = {
    "detached": lambda net, x: net[2](x) + net[1](net[0](x)).detach(),
    "as integers": lambda net, x: net[2](x) * net[1](net[0](x)).round().long(),
    "as a condition": lambda net, x: torch.where(net[1](net[0](x)) > 0, net[2](x), x),
    "as a number": lambda net, x: net[2](x) * net[1](net[0](x)).amax().item(),
    "as an array": lambda net, x: net[2](x) + torch.from_numpy(net[1](net[0](x)).numpy()),
    "in place": lambda net, x: net[2](x).add_(net[1](net[0](x))),
    "without gradients": _without_gradients,
    "written without gradients": _into_a_buffer,
    "as an index": _chosen_by_index,
    "where autograd refuses": lambda net, x: net[2](x) + net[1](net[0](x)).chunk(2, -1)[0].add_(1).mean(),
    "as weights": lambda net, x: nn.functional.linear(net[2](x), net[1](net[0](x)).mean((0, 1)).expand(4, 4)),
}


@pytest.mark.parametrize("how", USES)
@torch.no_grad()
def test_whatever_way_a_result_is_used_the_layers_count_as_used(how: str) -> None:
    assert unused(USES[how]) == set()


@pytest.mark.parametrize(
    "forward",
    [
        lambda net, x: net[2](x) + torch.zeros_like(net[1](net[0](x))),
        lambda net, x: net[2](x) * net[1](net[0](x)).shape[-1],
        lambda net, x: (net[2](x), net[1](net[0](x)))[0],
    ],
    ids=["for its type", "for its shape", "returned beside"],
)
def test_a_result_whose_values_nobody_reads_is_unused(forward: Forward) -> None:
    assert unused(forward) == {"0", "1"}


def test_a_layer_that_shares_its_weight_with_a_used_one_counts_as_used() -> None:
    net = Net(lambda net, x: (net[0](x), net[1](x), net[2](x))[2])
    net.layers[0].weight = net.layers[2].weight
    assert find_unused(denoiser(net), ["layers.0", "layers.1", "layers.2"]) == {"layers.1"}


def test_a_layer_that_did_not_run_this_time_counts_as_used() -> None:
    assert unused(lambda net, x: net[2](x)) == set()


def test_the_model_is_left_as_it_was() -> None:
    net = Net(lambda net, x: net[2](net[1](x)))
    model = denoiser(net)
    net.layers[1].weight.requires_grad_(True)
    find_unused(model, ["layers.1", "layers.2"])
    assert [n for n, p in net.named_parameters() if p.requires_grad] == ["layers.1.weight"]
    assert all(p.grad is None for p in net.parameters())
    assert not any(m._forward_pre_hooks for m in net.modules())


def _qwen(module: nn.Module, sample: Tensor, timestep: Tensor, _given: Any) -> Tensor:
    words = sample[:, :5]
    output: Tensor = module(
        sample,
        encoder_hidden_states=words,
        encoder_hidden_states_mask=torch.ones(words.shape[:2], dtype=torch.bool),
        timestep=timestep / 1000,
        img_shapes=[[(1, 4, 4)]] * len(sample),
        return_dict=False,
    )[0]
    return output


def test_the_last_text_branch_of_qwen_image_is_unused() -> None:
    module = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 4, 8),
    )
    graph = trace_model(wrapped(module.eval().requires_grad_(False), _qwen, (16, 16)))
    last = "transformer_blocks.1"
    assert graph.unused == {
        f"{last}.attn.to_add_out",
        f"{last}.txt_mlp.net.0.proj",
        f"{last}.txt_mlp.net.2",
    }


def _recipe(*rules: str) -> Recipe:
    return load_recipe("fashion-w8a8", [f"quantization.rules=[{', '.join(rules)}]"])


def test_unused_layers_stay_float_and_the_note_names_them() -> None:
    graph = trace_model(denoiser(Net(lambda net, x: (net[0](x), net[1](net[2](x)))[1])))
    notes: list[str] = []

    class Noting(SilentReporter):
        def note(self, text: str) -> None:
            notes.append(text)

    plan = make_plan(_recipe("{match: '*', bits: 8}"), graph, Noting())
    assert plan.modules == ("layers.2", "layers.1")
    assert notes == ["1 layer runs, but nothing uses its result: left float: layers.0"]
    notes.clear()
    ignoring = _recipe("{match: '*', bits: 8}", "{match: layers.0, ignore: true}")
    assert make_plan(ignoring, graph, Noting()) == plan
    assert notes == []


def test_rules_that_quantize_unused_layers_only_are_refused() -> None:
    graph = trace_model(denoiser(Net(lambda net, x: (net[0](x), net[1](net[2](x)))[1])))
    only = _recipe("{match: '*', ignore: true}", "{match: layers.0, bits: 8}")
    with pytest.raises(RecipeError, match=r"only layers whose result nothing uses: layers\.0\."):
        make_plan(only, graph)
