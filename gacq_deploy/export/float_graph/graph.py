"""What is the float graph, and which of its nodes came from which module?

Each node is mapped to the module whose scope torch's exporter recorded, and the mapping is proved: the weight of every
layer's node is that layer's own parameter.
"""

from __future__ import annotations

import ast
import gc
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnx import NodeProto, TensorProto
from torch import nn

from gacq_deploy.errors import ExportError
from gacq_deploy.export.float_graph.capture import REPORT_IT, ROOT, capture
from gacq_deploy.export.float_graph.simplify import simplify
from gacq_deploy.export.float_graph.views import TRANSPOSED, Views, WeightView, find_values, fold_views
from gacq_deploy.graph.dimensions import name_dimensions
from gacq_deploy.graph.files import with_found
from gacq_deploy.graph.header import SIZE_MULTIPLE_KEY
from gacq_deploy.graph.index import GraphIndex, module_of, replace_nodes, set_module, without_initializers
from gacq_deploy.models.base import Denoiser
from gacq_deploy.models.half_storage import stored_type
from gacq_deploy.spec import Array

DEFAULT_OPSET = 20
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_HALVES = {torch.float16: TensorProto.FLOAT16, torch.bfloat16: TensorProto.BFLOAT16}
_STORED = ".stored"
"""What the name of an initializer ends in whose type is not the one that is computed in."""
_SCOPES_KEY = "pkg.torch.onnx.name_scopes"


@dataclass(frozen=True)
class FloatGraph:
    """The graph of a model, whose weights are shapes, and which parameter each of them is."""

    model: onnx.ModelProto
    views: Views

    def find(self, module: nn.Module, tensor: TensorProto) -> TensorProto | Array:
        """Return an initializer that holds its values, or the values, which ``module`` holds, of one that does not."""
        return find_values(tensor, self.views, module)


def float_graph(
    denoiser: Denoiser, *, opset: int = DEFAULT_OPSET, dynamic_resolution: bool = False
) -> onnx.ModelProto:
    """Return the float graph with its weights in it; of a large model :func:`weightless_graph` takes less memory.

    Raises:
        ExportError: as :func:`weightless_graph`.
    """
    graph = weightless_graph(denoiser, opset=opset, dynamic_resolution=dynamic_resolution)
    result = without_initializers(graph.model)
    find = partial(graph.find, denoiser.module)
    result.graph.initializer.extend(with_found(tensor, find) for tensor in graph.model.graph.initializer)
    return result


def weightless_graph(
    denoiser: Denoiser, *, opset: int = DEFAULT_OPSET, dynamic_resolution: bool = False
) -> FloatGraph:
    """Return the float graph without its weights; a node's only metadata is ``gacq.module``, the module it came from.

    Inputs ``sample`` [batch, C, H, W] float32, ``timestep`` [batch] int64 and the conditioning by name;
    output ``output`` [batch, C, H, W] float32; the batch is dynamic.

    With ``dynamic_resolution`` dimensions 2 and 3 of sample and output are ``height`` and ``width``, and the graph
    says what they must be multiples of (:func:`~gacq_deploy.graph.header.size_multiple`).

    Raises:
        ExportError: a hook or replaced ``forward`` is left on the model, the exporter fails, the model has one
            resolution only, or a layer's node does not read the layer's own weight.
        ResourceError: out of memory.
    """
    multiple = _size_multiple(denoiser) if dynamic_resolution else None
    captured = capture(denoiser, opset, multiple)
    simplify(captured)
    folded = fold_views(captured, denoiser.module)
    model, views = _in_storage_types(_serialized(captured), folded, denoiser.module)
    del captured
    gc.collect()  # the captured program refers to itself
    name_dimensions(model)
    _map_modules(model, denoiser.module)
    _strip(model)
    if multiple is not None:
        onnx.helper.set_model_props(model, {SIZE_MULTIPLE_KEY: str(multiple)})
    graph = FloatGraph(model, views)
    check_layer_weights(graph, denoiser.module)
    return graph


def _serialized(captured: ir.Model) -> onnx.ModelProto:
    """Return a captured graph as a message; initializers without values stay so."""
    for name, value in captured.graph.initializers.items():
        if value.const_value is None:
            assert value.dtype is not None, f"'{name}' has no type"
            assert value.shape is not None, f"'{name}' has no shape"
            value.const_value = ir.ExternalTensor("", 0, 0, value.dtype, shape=value.shape, name=name)
    model = ir.serde.serialize_model(captured)
    for tensor in model.graph.initializer:
        del tensor.external_data[:]
    return model


def _in_storage_types(
    model: onnx.ModelProto, views: Views, module: nn.Module
) -> tuple[onnx.ModelProto, Views]:
    """Let weights that are stored in half precision be initializers of that type, a Cast to float32 behind each."""
    found, casts = dict(views), []
    for tensor in model.graph.initializer:
        view = views.get(tensor.name)
        kind = None if view is None else _HALVES.get(stored_type(module.get_parameter(view.parameter)))
        if view is None or kind is None:
            continue
        name, tensor.name, tensor.data_type = tensor.name, f"{tensor.name}{_STORED}", kind
        found[tensor.name] = found.pop(name)
        cast = onnx.helper.make_node("Cast", [tensor.name], [name], name=f"{name}/Cast", to=TensorProto.FLOAT)
        casts.append(cast)
    if casts:
        replace_nodes(model, [*casts, *model.graph.node])
    return model, found


def _size_multiple(denoiser: Denoiser) -> int:
    """Return what height and width must be multiples of.

    Raises:
        ExportError: the model has one resolution only, or its own does not fit.
    """
    hint = "Set export.dynamic_resolution to false."
    size = "x".join(map(str, denoiser.record.sample_shape[1:]))
    family = denoiser.family
    if family.size_multiple is None:
        raise ExportError(
            f"{family.name} cannot be exported with dynamic height and width: its positional embeddings are stored "
            f"for {size}.",
            hint,
        )
    config: Any = denoiser.module.config
    multiple = family.size_multiple(dict(config))
    if any(n % multiple for n in denoiser.record.sample_shape[1:]):
        raise ExportError(
            f"With dynamic height and width the model takes multiples of {multiple}, and its own size is {size}.",
            hint,
        )
    return multiple


def _map_modules(model: onnx.ModelProto, module: nn.Module) -> None:
    """Turn the exporter's scopes into ``gacq.module``; a module reachable by two paths keeps its first."""
    first = {id(m): name for name, m in module.named_modules()}
    canonical = {name: first[id(m)] for name, m in module.named_modules(remove_duplicate=False)}
    for node in model.graph.node:
        path = _scope(node)
        del node.metadata_props[:]
        if path is not None and canonical.get(path):
            set_module(node, canonical[path])


def _scope(node: NodeProto) -> str | None:
    """Return the innermost module of a node, relative to the network; its own name is the last scope."""
    text = next((p.value for p in node.metadata_props if p.key == _SCOPES_KEY), None)
    if text is None:
        return None
    scopes = ast.literal_eval(text)
    if len(scopes) < 2 or not scopes[-2].startswith(f"{ROOT}."):
        return None
    return str(scopes[-2].removeprefix(f"{ROOT}."))


def _strip(model: onnx.ModelProto) -> None:
    """Drop everything else the exporter wrote down: signatures, source lines, paths of the user's files."""
    graph = model.graph
    holders: Iterable[onnx.GraphProto | onnx.ModelProto | onnx.TensorProto | onnx.ValueInfoProto] = (
        model, graph, *graph.initializer, *graph.input, *graph.output, *graph.value_info,
    )  # fmt: skip
    for holder in holders:
        del holder.metadata_props[:]
        holder.ClearField("doc_string")
    for node in graph.node:
        node.ClearField("doc_string")


def check_layer_weights(graph: FloatGraph, module: nn.Module) -> int:
    """Check that every layer's node reads its own module's weight; return how many were checked.

    Layers that never run have no node; that is no error here (a plan that names one fails in ``insert_qdq``).

    Raises:
        ExportError: a node reads another weight (folded, permuted, mapped wrongly), or lost its module.
    """
    index = GraphIndex(graph.model)
    names = {id(p): name for name, p in module.named_parameters()}
    own = {names[id(m.weight)]: name for name, m in module.named_modules() if isinstance(m, _LAYERS)}
    layers = {name: m for name, m in module.named_modules() if isinstance(m, _LAYERS)}
    checked = 0
    for node in index.of_type("Conv", "Gemm", "MatMul"):
        read, name = node.input[1], module_of(node)
        view = graph.views.get(f"{read}{_STORED}" if index.is_widened(read) else read)
        if name is None or name not in layers:
            if view is not None and view.parameter in own:
                raise ExportError(
                    f"Node '{node.name}' computes layer '{own[view.parameter]}' but lost its name.", REPORT_IT
                )
            continue
        weight = names[id(layers[name].weight)]
        if view not in (WeightView(weight), WeightView(weight, TRANSPOSED)):
            raise ExportError(
                f"Node '{node.name}' is mapped to '{name}', but its weight is not that layer's: the exporter "
                "folded or moved it.",
                REPORT_IT,
            )
        checked += 1
    return checked
