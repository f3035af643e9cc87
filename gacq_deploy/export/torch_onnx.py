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
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import torch
from onnx import NodeProto
from torch import nn

from gacq_deploy.errors import ExportError
from gacq_deploy.graph.dimensions import BATCH, HEIGHT, WIDTH, name_dimensions
from gacq_deploy.graph.header import SIZE_MULTIPLE_KEY
from gacq_deploy.graph.index import GraphIndex, module_of, set_module
from gacq_deploy.models.base import Denoiser
from gacq_deploy.spec import Array
from gacq_deploy.storage.memory import lack_of_memory

DEFAULT_OPSET = 20
OUTPUT_NAME = "output"
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_SCOPES_KEY = "pkg.torch.onnx.name_scopes"
_ROOT = "denoiser"
"""The attribute of the module that is exported under which the network itself stands."""
_EXAMPLE_BATCH = 2
"""More than 1, which torch would take for a constant of the graph."""
# diffusers' upsampling asks whether the batch is >= 64; the graph itself works at any batch
_BATCH_MAX = 63
# in units of the multiple: unequal, and above 1, which torch takes for a constant
_EXAMPLE_SIZE = (4, 6)
_TOP_LEVEL_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_COSMETIC = (
    r".*isinstance\(treespec, LeafSpec\).*",
    r".*The axis name: (batch|.*height|.*width) will not be used.*",
)
"""Warnings of the exporter about itself; dimensions get their names afterwards."""
_HINT = "Please report the model's class; nothing was written."


def float_graph(
    denoiser: Denoiser, *, opset: int = DEFAULT_OPSET, dynamic_resolution: bool = False
) -> onnx.ModelProto:
    """Return the float graph; a node's only metadata is ``gacq.module``, the dotted module it came from.

    Inputs ``sample`` [batch, C, H, W] float32, ``timestep`` [batch] int64 and the conditioning by name;
    output ``output`` [batch, C, H, W] float32; the batch is dynamic.

    With ``dynamic_resolution`` dimensions 2 and 3 of sample and output are ``height`` and ``width``, and the graph
    says what they must be multiples of (:func:`~gacq_deploy.graph.header.size_multiple`).

    Raises:
        ExportError: a hook or replaced ``forward`` is left on the model, the exporter fails, the model has one
            resolution only, or a layer's weight in the graph is not the module's, bit for bit.
    """
    check_untouched(denoiser.module)
    multiple = _size_multiple(denoiser) if dynamic_resolution else None
    inputs = denoiser.example_inputs(_EXAMPLE_BATCH)
    if multiple is not None:
        height, width = (n * multiple for n in _EXAMPLE_SIZE)
        inputs["sample"] = torch.zeros((*inputs["sample"].shape[:2], height, width))
    model = _export(denoiser.call_module(), inputs, opset, multiple)
    gc.collect()  # the captured program refers to itself, and to every weight: the caller's model could not go
    name_dimensions(model)
    _map_modules(model, denoiser.module)
    _strip(model)
    if multiple is not None:
        onnx.helper.set_model_props(model, {SIZE_MULTIPLE_KEY: str(multiple)})
    check_exported_weights(model, denoiser.module)
    return model


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


def _export(
    module: nn.Module, inputs: Mapping[str, torch.Tensor], opset: int, multiple: int | None
) -> onnx.ModelProto:
    batch = torch.export.Dim(BATCH, min=1, max=_BATCH_MAX)
    rows = {0: batch}
    sample = rows if multiple is None else {**rows, 2: _size(HEIGHT, multiple), 3: _size(WIDTH, multiple)}
    # as the call module's signature: sample, timestep, *conditioning
    conditioning = (rows,) * (len(inputs) - 2)
    shapes = (sample, rows, conditioning) if conditioning else (sample, rows)
    with _quiet():
        try:
            program = torch.export.export(module, tuple(inputs.values()), dynamic_shapes=shapes, strict=False)
            _drop_idle_squeezes(program)
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
            raise lack_of_memory(error, "Exporting the model") or ExportError(
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


def _drop_idle_squeezes(program: torch.export.ExportedProgram) -> None:
    """Remove what squeezes a dimension that is not 1, as PixArt does: nothing in torch, an error in ONNX."""
    for node in program.graph.nodes:
        if node.target is torch.ops.aten.squeeze.dim:
            squeezed, dim = node.args
            if squeezed.meta["val"].shape[dim] != 1:
                node.replace_all_uses_with(squeezed)
    program.graph.eliminate_dead_code()


def _size(name: str, multiple: int) -> Any:
    """Return torch's symbol of a height or width."""
    return torch.export.Dim(name) if multiple == 1 else multiple * torch.export.Dim(f"_{name}")


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


def check_exported_weights(model: onnx.ModelProto, module: nn.Module) -> int:
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
