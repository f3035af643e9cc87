"""Which parameter of the model does an initializer hold, and turned how? Known by name, before any weight is read.

A linear layer's weight stands transposed in a graph, a norm's is shaped to broadcast. Those operators are taken out of
the graph, and what they do is done when the weight is written.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
from onnx import TensorProto
from torch import nn

from gacq_deploy.export.float_graph.capture import ROOT
from gacq_deploy.models.half_storage import stored_values
from gacq_deploy.spec import Array

ViewStep = tuple[Literal["transpose", "reshape"], tuple[int, ...]]
TRANSPOSED: tuple[ViewStep, ...] = (("transpose", (1, 0)),)


@dataclass(frozen=True)
class WeightView:
    """A parameter, by its name in the model, and what is done to its values one after the other."""

    parameter: str
    steps: tuple[ViewStep, ...] = ()

    @property
    def name(self) -> str:
        """What the initializer is called."""
        done = [".T" if step == TRANSPOSED[0] else f".{'x'.join(map(str, step[1]))}" for step in self.steps]
        return f"{ROOT}.{self.parameter}{''.join(done)}"

    def of(self, module: nn.Module) -> Array:
        """Return the values as the parameter is stored, float32, float16 or bfloat16."""
        values = stored_values(module.get_parameter(self.parameter))
        for kind, sizes in self.steps:
            values = values.transpose(sizes) if kind == "transpose" else values.reshape(sizes)
        return values


Views = Mapping[str, WeightView]
"""Initializer -> what it holds."""


def find_values(tensor: TensorProto, views: Views, module: nn.Module) -> TensorProto | Array:
    """Return an initializer that holds its values, or the values of one that does not."""
    view = views.get(tensor.name)
    return tensor if view is None else view.of(module)


def fold_views(model: ir.Model, module: nn.Module) -> dict[str, WeightView]:
    """Take out of a captured graph what only turns weights; return what its initializers without values hold.

    A parameter that the model has by two names is one initializer.

    Args:
        model: changed in place.
        module: the network; its weights are not read.
    """
    views = _Views(model.graph)
    first = {id(p): name for name, p in module.named_parameters()}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if value := model.graph.initializers.get(f"{ROOT}.{name}"):
            views.take(value, WeightView(first[id(parameter)]))
    for node in list(model.graph):
        views.take_out(node)
    for unread in [
        n for n, v in model.graph.initializers.items() if not v.uses() and not v.is_graph_output()
    ]:
        del model.graph.initializers[unread]
    return {n: views.found[v] for n, v in model.graph.initializers.items() if v in views.found}


class _Views:
    """The initializers of one graph that are weights, and what they hold."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self.found: dict[ir.Value, WeightView] = {}
        self._kept: dict[WeightView, ir.Value] = {}

    def take(self, value: ir.Value, view: WeightView) -> None:
        """Let ``value`` be what holds a view, or what does already."""
        kept = self._kept.setdefault(view, value)
        self.found[kept] = view
        if kept is not value:
            value.replace_all_uses_with(kept)

    def take_out(self, node: ir.Node) -> None:
        """Let an initializer take the place of a node that only turns a weight."""
        source = node.inputs[0] if node.inputs else None
        if source is None or source not in self.found or (step := _step(node, source)) is None:
            return
        view = WeightView(self.found[source].parameter, (*self.found[source].steps, step))
        if view not in self._kept:
            value = ir.Value(name=view.name, shape=ir.Shape(_sizes(source, step)), type=source.type)
            self._graph.initializers.add(value)
            self.take(value, view)
        self.take(node.outputs[0], view)
        self._graph.remove(node, safe=True)


def _sizes(source: ir.Value, step: ViewStep) -> tuple[int, ...]:
    kind, numbers = step
    assert source.shape is not None
    return tuple(source.shape.numpy()[i] for i in numbers) if kind == "transpose" else numbers


def _step(node: ir.Node, source: ir.Value) -> ViewStep | None:
    """Return what a node does to a weight, if it only turns it."""
    assert source.shape is not None
    sizes = source.shape.numpy()
    if node.op_type == "Identity":
        return "reshape", sizes
    if node.op_type == "Transpose":
        order = node.attributes.get("perm")
        return "transpose", tuple(reversed(range(len(sizes)))) if order is None else tuple(order.as_ints())
    if node.op_type not in ("Reshape", "Unsqueeze") or node.attributes.get_int("allowzero"):
        return None
    given = node.inputs[1].const_value if len(node.inputs) > 1 and node.inputs[1] is not None else None
    if given is None:
        return None
    numbers = [int(number) for number in np.atleast_1d(given.numpy())]
    return "reshape", _reshaped(sizes, numbers) if node.op_type == "Reshape" else _unsqueezed(sizes, numbers)


def _reshaped(sizes: tuple[int, ...], wanted: list[int]) -> tuple[int, ...]:
    kept = [sizes[i] if number == 0 else number for i, number in enumerate(wanted)]
    rest = math.prod(sizes) // math.prod(number for number in kept if number > 0)
    return tuple(rest if number < 0 else number for number in kept)


def _unsqueezed(sizes: tuple[int, ...], axes: list[int]) -> tuple[int, ...]:
    rank = len(sizes) + len(axes)
    ones, rest = {axis % rank for axis in axes}, iter(sizes)
    return tuple(1 if axis in ones else next(rest) for axis in range(rank))
