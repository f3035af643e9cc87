from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from gacq_deploy.backends.pieces import open_frugally
from gacq_deploy.errors import ExportError
from gacq_deploy.export.float_graph.graph import float_graph
from gacq_deploy.export.same_function import (
    STATE_FACTORS,
    TOLERANCE,
    FloatReference,
    first_departure,
    float_reference,
    require_same,
)
from gacq_deploy.graph.index import GraphIndex, module_of
from gacq_deploy.metrics.arrays import euclidean_error
from gacq_deploy.models.answers import answer_rows
from gacq_deploy.models.base import Conditioning, Denoiser
from gacq_deploy.spec import Array
from tests.support.models.joint_transformers import wrapped

ROWS = 3


class Ratio(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / (x.abs() + 1e-7)


class Root(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt((x * x).mean(dim=(1, 2, 3), keepdim=True) + 1e-6)


class Bounded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(-6, 6)


class Delicate(nn.Module):
    """Layers that only states far from the recorded ones tell from simpler ones."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(4, 8, 3, padding=1)
        self.norm = nn.GroupNorm(8, 8, eps=1e-10)
        self.ratio, self.root, self.bounded = Ratio(), Root(), Bounded()
        self.conv_out = nn.Conv2d(20, 4, 3, padding=1)

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        h = self.norm(self.conv_in(sample)) + timestep.float()[:, None, None, None] / 1000
        parts = [h, self.ratio(sample), self.root(sample), self.bounded(sample)]
        output: Tensor = self.conv_out(torch.cat(parts, dim=1))
        return output


def _call(module: nn.Module, sample: Tensor, timestep: Tensor, _given: Conditioning) -> Tensor:
    output: Tensor = module(sample, timestep)
    return output


@pytest.fixture(scope="module")
def delicate() -> Denoiser:
    torch.manual_seed(0)
    return wrapped(Delicate().eval().requires_grad_(False), _call, (4, 8, 8))


@pytest.fixture(scope="module")
def graph(delicate: Denoiser) -> onnx.ModelProto:
    return float_graph(delicate)


@pytest.fixture(scope="module")
def reference(delicate: Denoiser) -> FloatReference:
    inputs = {name: value.numpy() for name, value in delicate.example_inputs(ROWS, seed=1).items()}
    return float_reference(delicate, inputs, answer_rows(delicate, inputs))


@pytest.fixture
def changed(graph: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    return copy


def _judge(model: onnx.ModelProto, folder: Path, reference: FloatReference, denoiser: Denoiser) -> Array:
    path = folder / "float.onnx"
    path.write_bytes(model.SerializeToString())
    with open_frugally(path, reference.inputs, threads=1) as engine:
        output = engine.run(reference.inputs)["output"]
    require_same(path, output, reference, lambda: denoiser)
    return output


def _bypass(model: onnx.ModelProto, module: str, op_type: str) -> None:
    """Take out the first node of this type in a module, as an optimizer does that deems it idle."""
    index = GraphIndex(model)
    node = next(n for n in index.of_type(op_type) if module_of(n) == module)
    for use in index.readers(node.output[0]):
        use.node.input[use.position] = node.input[0]
    model.graph.node.remove(node)


def test_an_unchanged_function_passes_at_every_scale(
    graph: onnx.ModelProto, reference: FloatReference, delicate: Denoiser, tmp_path: Path
) -> None:
    output = _judge(graph, tmp_path, reference, delicate)
    assert len(output) == ROWS + len(STATE_FACTORS)
    # behind the first layer a state of 0 is constant, and what a norm makes of that is rounding, in torch itself
    apart = [euclidean_error(one, other) for one, other in zip(output, reference.answers, strict=True)]
    assert apart[ROWS] > TOLERANCE > max(apart[:ROWS])


@pytest.mark.parametrize(
    ("module", "op_type", "states", "reader"),
    [
        ("ratio", "Add", {"0"}, "Div"),
        ("root", "Add", {"0"}, "Mul"),
        ("bounded", "Clip", {"2^3"}, ""),
    ],
)
def test_what_an_optimizer_dropped_is_found_and_named(
    changed: onnx.ModelProto, reference: FloatReference, delicate: Denoiser, tmp_path: Path,
    module: str, op_type: str, states: set[str], reader: str,
) -> None:  # fmt: skip
    _bypass(changed, module, op_type)
    with pytest.raises(ExportError) as raised:
        _judge(changed, tmp_path, reference, delicate)
    text = raised.value.message
    assert any(f"on a recorded state times {state}; allowed is" in text for state in states)
    # where a whole module is gone, what reads it is the first that can be compared
    assert f"The first difference is in module '{module if reader else 'conv_out'}', at node '" in text


@pytest.mark.parametrize(("module", "factor"), [("ratio", "2^-30"), ("root", "2^-10"), ("root", "2^-30")])
def test_an_epsilon_shows_on_small_states_where_nothing_is_divided_by_0(
    changed: onnx.ModelProto,
    reference: FloatReference,
    delicate: Denoiser,
    tmp_path: Path,
    module: str,
    factor: str,
) -> None:
    _bypass(changed, module, "Add")
    path = tmp_path / "float.onnx"
    path.write_bytes(changed.SerializeToString())
    place = ROWS + list(STATE_FACTORS).index(factor)
    row = {name: value[place : place + 1] for name, value in reference.inputs.items()}
    found = first_departure(path, delicate, row)
    assert found is not None
    assert found.module == module
    assert found.error > 0.01
    recorded = {name: value[:1] for name, value in reference.inputs.items()}
    assert first_departure(path, delicate, recorded) is None


def test_each_row_is_judged_by_its_own_norm(
    graph: onnx.ModelProto, reference: FloatReference, delicate: Denoiser, tmp_path: Path
) -> None:
    answers = reference.answers.copy()
    answers[0] *= 1000
    answers[1] *= np.float32(1.0002)  # next to the large row it is nothing
    with pytest.raises(ExportError, match=r"departs from torch by 9\.99e-01 .* on a recorded state;"):
        _judge(graph, tmp_path, replace(reference, answers=answers), delicate)
    answers[0] /= 1000
    with pytest.raises(ExportError, match=r"by 2\.00e-04 .*the recorded answers are not this model's"):
        _judge(graph, tmp_path, replace(reference, answers=answers), delicate)


def test_where_torch_answers_nothing_finite_nothing_is_asked(
    graph: onnx.ModelProto, reference: FloatReference, delicate: Denoiser, tmp_path: Path
) -> None:
    answers = reference.answers.copy()
    answers[ROWS] = np.nan
    _judge(graph, tmp_path, replace(reference, answers=answers), delicate)


def test_the_model_is_left_as_it_was(delicate: Denoiser, reference: FloatReference) -> None:
    assert not any(m._forward_hooks for m in delicate.module.modules())
