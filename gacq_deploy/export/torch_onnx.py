"""What is the float graph, and which of its nodes came from which module?

Of torch's two exporters the dynamo one is used. ``benchmarks/exporters.py`` measures both on a small UNet:
equal numbers (7e-7 from torch), every layer found in both, half the nodes (456 against 939) and 6 % less CPU
time for the dynamo one, which takes some 15 times as long to export. What decides: it records the module of
every node, where the other has only a naming habit; the other is deprecated, ends at opset 20, warns 39 times
on this model and cannot export operators of newer denoisers such as RMS normalization. Weight names identify
nothing in either: a linear layer on 3-D input becomes an anonymous transposed matrix. So each node is mapped
by scope and the mapping is proved by weight equality.

The exporter's own fallbacks are avoided: it retries a failed capture with other strategies, whose metadata
names no modules. The capture is made here, once, and fails loudly.
"""

from __future__ import annotations

import ast
import gc
import logging
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import NodeProto
from torch import nn

from gacq_deploy.errors import ExportError
from gacq_deploy.export.graph import GraphIndex, module_of, set_module
from gacq_deploy.export.graph_file import write_graph
from gacq_deploy.models.base import Denoiser
from gacq_deploy.storage import Array

DEFAULT_OPSET = 20
OUTPUT_NAME = "output"
BATCH = "batch"
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_SCOPES_KEY = "pkg.torch.onnx.name_scopes"
_ROOT = "denoiser"
_EXAMPLE_BATCH = 2
# diffusers' upsampling asks whether the batch is >= 64; the graph itself works at any batch
_BATCH_MAX = 63
_COSMETIC = (
    r".*isinstance\(treespec, LeafSpec\).*",
    r".*The axis name: batch will not be used.*",
)
_TOP_LEVEL_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_HINT = "Please report the model's class; nothing was written."


def export_float(
    denoiser: Denoiser, path: Path, *, opset: int = DEFAULT_OPSET, external_data_mb: int = 1024
) -> tuple[Path, ...]:
    """Write the float graph of ``denoiser``; return the files.

    Inputs ``sample`` [batch, C, H, W] float32, ``timestep`` [batch] int64 and the conditioning by name;
    output ``output`` [batch, C, H, W] float32; the batch is dynamic.

    Raises:
        ExportError: as :func:`float_graph`.
    """
    return write_graph(float_graph(denoiser, opset=opset), path, external_data_mb=external_data_mb)


def float_graph(denoiser: Denoiser, *, opset: int = DEFAULT_OPSET) -> onnx.ModelProto:
    """Return the float graph; its only metadata is ``gacq.module``, the dotted module a node came from.

    Raises:
        ExportError: a hook or replaced ``forward`` is left on the model, the exporter fails, or a layer's
        weight in
            the graph is not the module's, bit for bit.
    """
    check_untouched(denoiser.module)
    inputs = denoiser.example_inputs(_EXAMPLE_BATCH)
    model = _export(denoiser.call_module(), inputs, opset)
    gc.collect()  # the captured program refers to itself, and to every weight: the caller's model could not go
    symbol = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    _name_batch(model, symbol)
    _map_modules(model, denoiser.module)
    _strip(model)
    check_weights(model, denoiser.module)
    return model


def check_untouched(module: nn.Module) -> None:
    """Refuse a model that something still holds on to: capture would follow it into another graph.

    Raises:
        ExportError: naming the module and what is left on it.
    """
    for name, child in module.named_modules():
        left = [kind.strip("_") for kind in _TOP_LEVEL_HOOKS if getattr(child, kind)]
        left += ["a replaced forward"] if "forward" in vars(child) else []
        if left:
            raise ExportError(
                f"Module '{name or 'denoiser'}' still carries {', '.join(left)}; the export would map "
                "no layers.",
                "Remove every hook (handle.remove()), or load the model afresh.",
            )


def _export(module: nn.Module, inputs: Mapping[str, torch.Tensor], opset: int) -> onnx.ModelProto:
    batch = torch.export.Dim(BATCH, min=1, max=_BATCH_MAX)
    dynamic = {0: batch}
    extra = len(inputs) - 2
    # as the call module's signature: sample, timestep, *conditioning
    shapes = (dynamic, dynamic, *([tuple(dynamic for _ in range(extra))] if extra else []))
    with _quiet():
        try:
            program = torch.export.export(module, tuple(inputs.values()), dynamic_shapes=shapes, strict=False)
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                input_names=list(inputs),
                output_names=[OUTPUT_NAME],
                external_data=False,
                verbose=False,
            )
        except (RuntimeError, ValueError, TypeError, KeyError, torch.onnx.OnnxExporterError) as error:
            first_line = str(error).strip().partition("\n")[0]
            raise ExportError(
                f"torch could not export the model: {type(error).__name__}: {first_line}", _HINT
            ) from error
    assert exported is not None, "torch.onnx.export returned no program"
    model = exported.model_proto
    # onnxscript's rewriting rules remember the last graph they saw, and with it the weights of a model long gone
    for value in exported.model.graph.initializers.values():
        value.const_value = None
    if not isinstance(model, onnx.ModelProto):
        raise ExportError(f"torch exported {type(model).__name__}, not an ONNX model.", _HINT)
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter says of itself and nobody can act on; every other warning passes."""
    logger = logging.getLogger(
        "torch.onnx._internal.exporter._registration"
    )  # "torchvision is not installed"
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for message in _COSMETIC:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        logger.setLevel(level)


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
    if len(scopes) < 2 or not scopes[-2].startswith(f"{_ROOT}."):
        return None
    return str(scopes[-2].removeprefix(f"{_ROOT}."))


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


def _name_batch(model: onnx.ModelProto, symbol: str) -> None:
    """Give torch's symbol of the batch its plain name, in expressions too."""
    pattern = re.compile(rf"\b{re.escape(symbol)}\b")
    graph = model.graph
    for info in (*graph.input, *graph.output, *graph.value_info):
        for dim in info.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = pattern.sub(BATCH, dim.dim_param)


def check_weights(model: onnx.ModelProto, module: nn.Module) -> int:
    """Check that every layer node holds its own module's weight; return how many were checked.

    Layers that never run have no node; that is no error here (a plan that names one fails in ``insert_qdq``).

    Raises:
        ExportError: a weight differs (folded, permuted, mapped wrongly), or a node lost its module.
    """
    index = GraphIndex(model)
    layers = {name: m for name, m in module.named_modules() if isinstance(m, _LAYERS)}
    found: set[str] = set()
    strangers: list[tuple[NodeProto, Array]] = []
    checked = 0
    for node in index.of_type("Conv", "Gemm", "MatMul"):
        stored = index.constant(node.input[1])
        name = module_of(node)
        if name is None or name not in layers:
            strangers += [(node, stored)] if stored is not None else []
            continue
        if stored is None or not _same_bits(stored, _weight(layers[name])):
            raise ExportError(
                f"Node '{node.name}' is mapped to '{name}', but its weight is not that layer's: the exporter "
                "folded or moved it.",
                _HINT,
            )
        found.add(name)
        checked += 1
    for name in sorted(set(layers) - found):
        for node, stored in strangers:
            if _same_bits(stored, _weight(layers[name])):
                raise ExportError(f"Node '{node.name}' computes layer '{name}' but lost its name.", _HINT)
    return checked


def _weight(layer: nn.Module) -> Array:
    return np.asarray(layer.get_parameter("weight").detach().cpu().numpy())


def _same_bits(stored: Array, weight: Array) -> bool:
    if stored.dtype != weight.dtype:
        return False
    bits = f"u{weight.itemsize}"
    candidates = (weight, weight.T) if weight.ndim == 2 else (weight,)
    return any(np.array_equal(stored.view(bits), c.view(bits)) for c in candidates)
