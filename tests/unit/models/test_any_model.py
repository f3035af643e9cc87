"""Every model is cut and traced by what it declares and does, without code of its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gacq_deploy.calibration.planning import make_plan
from gacq_deploy.errors import ModelError, RecipeError
from gacq_deploy.models.base import Denoiser
from gacq_deploy.models.structure.blocks import cut_blocks
from gacq_deploy.models.structure.graph import Block, ModelGraph, trace_model
from gacq_deploy.recipe.load import load_recipe
from gacq_deploy.spec import Site
from tests.support.models.joint_transformers import JOINT, small_flux, small_sd3, wrapped

BLOCKS = {
    "sd3": {"transformer_blocks": 3},
    "flux": {"transformer_blocks": 2, "single_transformer_blocks": 2},
    "pixart": {"transformer_blocks": 2},
    "sana": {"transformer_blocks": 2},
    "auraflow": {"joint_transformer_blocks": 1, "single_transformer_blocks": 2},
}
EVERYTHING = "quantization.rules=[{match: '*', bits: 8}]"


@pytest.fixture(scope="module")
def graphs() -> dict[str, ModelGraph]:
    return {name: trace_model(make()) for name, make in JOINT.items()}


def block(graph: ModelGraph, name: str) -> Block:
    return next(b for b in graph.blocks if b.name == name)


@pytest.mark.parametrize("name", JOINT)
def test_transformer_blocks_are_blocks_and_hold_every_layer(name: str, graphs: dict[str, ModelGraph]) -> None:
    names = [b.name for b in graphs[name].blocks]
    for stack, count in BLOCKS[name].items():
        assert [n for n in names if n.startswith(f"{stack}.")] == [f"{stack}.{i}" for i in range(count)]
    assert [s for b in graphs[name].blocks for s in b.sites] == list(graphs[name].sites)
    assert not graphs[name].uncut
    assert not graphs[name].repeated


def test_both_streams_of_joint_blocks_are_seen(graphs: dict[str, ModelGraph]) -> None:
    graph = graphs["sd3"]
    first, last = block(graph, "transformer_blocks.1"), block(graph, "transformer_blocks.2")
    assert [t.shape for t in first.outputs.values()] == [(5, 32), (16, 32)]
    assert list(first.outputs) == [(0,), (1,)]
    # the last block has no use for the text: it returns (None, image)
    assert list(last.outputs) == [(1,)]
    assert last.result == (None, None)
    position = {b.name: i for i, b in enumerate(graph.blocks)}
    assert last.depends_on == (position["time_text_embed"], position["transformer_blocks.1"])
    assert graph.blocks[position["context_embedder"]].last_use == position["transformer_blocks.0"]
    assert graph.blocks[position["time_text_embed"]].last_use == position["norm_out"]


def test_rotary_embeddings_are_constants(graphs: dict[str, ModelGraph]) -> None:
    taken = {path[1] for b in graphs["flux"].blocks for path in b.inputs if path[0] == "kwargs"}
    assert taken == {"hidden_states", "encoder_hidden_states", "temb"}


def test_readers_of_one_tensor_share_a_scale(graphs: dict[str, ModelGraph]) -> None:
    def readers(name: str, prefix: str, *layers: str) -> set[Site]:
        return {graphs[name].shared_tensor[Site(f"{prefix}.{layer}", "input")] for layer in layers}

    image, text = (
        ("attn.to_q", "attn.to_k", "attn.to_v"),
        ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    )
    for name, stack in (
        ("sd3", "transformer_blocks"),
        ("flux", "transformer_blocks"),
        ("auraflow", "joint_transformer_blocks"),
    ):
        for layers in (image, text):
            assert len(readers(name, f"{stack}.0", *layers)) == 1
        assert len(readers(name, f"{stack}.0", *image, *text)) == 2
    single = readers("flux", "single_transformer_blocks.0", *image, "proj_mlp")
    assert single == {Site("single_transformer_blocks.0.proj_mlp", "input")}
    assert readers("flux", "single_transformer_blocks.0", "proj_out").isdisjoint(single)


def test_a_module_that_takes_the_number_of_rows_is_cut_into_its_children() -> None:
    # PixArt's adaln_single is given batch_size=
    denoiser = JOINT["pixart"]()
    assert "adaln_single" in cut_blocks(denoiser.module)
    names = [b.name for b in trace_model(denoiser).blocks]
    assert "adaln_single" not in names
    assert {"adaln_single.emb.timestep_embedder", "adaln_single.linear"} < set(names)


def test_a_second_attention_of_the_block_is_part_of_it() -> None:
    graph = trace_model(small_sd3(dual_attention_layers=()))
    assert not any("attn2" in s.module for s in graph.sites)


class Net(nn.Module):
    """Two residual layers and what a test puts around them."""

    def __init__(self, change: Callable[[Net, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.first, self.second, self.third = (Pair(), Pair(), Pair())
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self, x) if self.change else self.third(self.second(self.first(x)))


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(torch.relu(self.a(x)))


class Overwriting(Pair):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(torch.relu_(self.a(x.relu_())))


class Same(Pair):
    """Returns its input's own memory beside its answer."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return x[:, :2], super().forward(x)


def toy(module: nn.Module) -> Denoiser:
    return wrapped(module.eval().requires_grad_(False), lambda m, sample, _t, _c: m(sample), (2, 3, 4))


def blocks_of(module: nn.Module) -> list[str]:
    return [b.name for b in trace_model(toy(module)).blocks]


def test_a_module_that_runs_twice_is_cut_and_its_layers_have_to_stay_float() -> None:
    graph = trace_model(toy(Net(lambda m, x: m.third(m.first(m.first(x))))))
    assert [b.name for b in graph.blocks] == ["third"]
    assert graph.repeated == {"first.a", "first.b"}


def test_a_block_that_changes_its_input_is_cut_so_that_the_change_is_computed_again() -> None:
    net = Net(lambda m, x: m.third(m.second(m.first(x)) * 1))
    net.second = Overwriting()
    assert blocks_of(net) == ["first", "second.a", "second.b", "third"]


def test_glue_may_write_into_what_a_block_returned() -> None:
    graph = trace_model(toy(Net(lambda m, x: m.third(m.second(m.first(x).mul_(2)).add_(x)))))
    assert [b.depends_on for b in graph.blocks] == [(), (0,), (1,)]


def test_readers_before_and_after_a_change_in_place_read_two_tensors() -> None:
    def change(net: Net, x: Tensor) -> Tensor:
        y = net.first(x)
        before = net.second.a(y)
        return net.second.b(y.mul_(3)) + before + net.third(y)

    shared = trace_model(toy(Net(change))).shared_tensor
    before, after, third = (Site(n, "input") for n in ("second.a", "second.b", "third.a"))
    assert shared[before] == before
    assert shared[third] == shared[after] == after


def test_memory_shared_with_an_input_is_harmless_until_it_is_changed() -> None:
    def quiet(net: Net, x: Tensor) -> Tensor:
        y = net.first(x)
        part, out = net.second(y)
        return net.third(out) + y + part.sum()

    def loud(net: Net, x: Tensor) -> Tensor:
        y = net.first(x)
        part, out = net.second(y)
        part.mul_(2)
        return net.third(out) + y

    for change, expected in ((quiet, ["second"]), (loud, ["second.a", "second.b"])):
        net = Net(change)
        net.second = Same()
        assert [n for n in blocks_of(net) if n.startswith("second")] == expected


def test_a_module_of_which_only_the_children_run_is_cut() -> None:
    assert blocks_of(Net(lambda m, x: m.third(m.second.b(m.second.a(m.first(x)))))) == [
        "first",
        "second.a",
        "second.b",
        "third",
    ]


@pytest.mark.parametrize("rows", [2, 3])
def test_a_constant_with_as_many_rows_as_the_batch_is_told_by_another_batch(rows: int) -> None:
    class Table(Pair):
        def forward(self, x: Tensor, nested: dict[str, Tensor]) -> Tensor:  # type: ignore[override]
            return super().forward(x) + nested["table"].sum()

    def change(net: Net, x: Tensor) -> Tensor:
        out: Tensor = net.second(net.first(x), {"table": torch.arange(rows), "scale": x})
        return out

    net = Net(change)
    net.second = Table()
    (_, second) = trace_model(toy(net)).blocks
    assert list(second.inputs) == [("args", 0), ("args", 1, "scale")]


def test_a_layer_without_a_row_for_each_sample_has_to_stay_float() -> None:
    graph = trace_model(toy(Net(lambda m, x: m.third(m.first(x.transpose(0, 1)).transpose(0, 1)))))
    assert [b.name for b in graph.blocks] == ["third"]
    assert list(graph.uncut) == ["first.a", "first.b"]
    assert "of shape [2, 3, 3, 4] in one call and [2, 2, 3, 4] in another" in graph.uncut["first.a"]
    with pytest.raises(RecipeError, match=r"'first.a' cannot be quantized: it lies in no block") as caught:
        make_plan(load_recipe("fashion-w8a8", [EVERYTHING]), graph)
    assert "ignore: true" in caught.value.hint
    left = EVERYTHING.replace("]", ", {match: 'first.*', ignore: true}]")
    assert make_plan(load_recipe("fashion-w8a8", [left]), graph).modules == ("third.a", "third.b")


def test_a_model_that_offers_no_block_is_refused_with_the_reason() -> None:
    with pytest.raises(
        ModelError, match=r"No module can be a block: .*'first' .* of shape \[2, 3, 3, 4\]"
    ) as caught:
        trace_model(toy(Net(lambda m, x: m.first(x.transpose(0, 1)).transpose(0, 1))))
    assert "first dimension is the sample" in caught.value.hint


def test_of_a_model_that_declares_nothing_the_members_of_lists_are_blocks() -> None:
    class Lists(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
            self.layers = nn.ModuleList([Pair(), Pair()])

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            for layer in self.layers:
                x = layer(x)
            return x

    assert blocks_of(Lists()) == ["embed", "layers.0", "layers.1"]


def test_tracing_leaves_no_hook_behind() -> None:
    denoiser = small_flux()
    trace_model(denoiser)
    for module in denoiser.module.modules():
        assert "forward" not in module.__dict__
        assert not module._forward_pre_hooks
