"""Where do Q and DQ go, with which scales? Learned numbers enter the float graph unrounded."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper

import gacq_deploy
from gacq_deploy.artifact.artifact import CalibrationArtifact
from gacq_deploy.errors import ExportError
from gacq_deploy.export.layers import LayerNode, find_layers
from gacq_deploy.export.parameters import put_parameters
from gacq_deploy.graph.index import (
    DEQUANTIZE,
    QUANTIZE,
    GraphIndex,
    drop_unused_initializers,
    module_of,
    opset_of,
    replace_nodes,
    set_module,
    without_initializers,
)
from gacq_deploy.graph.weights import Store, is_whole, stored
from gacq_deploy.spec import Array, QuantPlan, Role, Site

Placement = Literal["input", "output"]
SMOOTH = "Smooth"
"""What the node that smooths an input is called, behind the site's name."""
OPSETS = range(19, 23)
"""19 is the oldest with Q/DQ TensorRT and ONNX Runtime read alike; from 23 on torch emits a fused
Attention."""
BLOCK_OPSET = 21
"""The first with INT4 and scales in blocks."""
_HINT = "Export the float graph again from the model that was calibrated (`gacq-deploy export --onnx`)."


def insert_qdq(
    model: onnx.ModelProto, artifact: CalibrationArtifact, *, placement: Placement, store: Store = stored
) -> onnx.ModelProto:
    """Return a copy of the float ``model`` with the artifact's codes and scales in it, all signed int8.

    ``store`` decides where they lie. The weights of ``model`` may be shapes without values: then it is not checked
    whether they are those that calibration saw.

    Retrained parameters take the place of the float model's own (``put_parameters``).
    Weights become int8 codes and a ``DequantizeLinear`` (no quantizer: learned rounding stays exact). Every
    activation tensor that planned layers read gets one Q/DQ pair, per tensor; only those layers read the
    pair. ``placement="output"`` adds pairs on the planned convolution outputs, which everybody reads. Weights planned
    in blocks become INT4 codes with scales along the input features, and their layers read the float tensor.

    Where the input is smoothed and no norm does that, a ``Mul`` stands before the pair.

    Raises:
        ExportError: the graph is not the float graph of the calibrated model, a planned site or a retrained
            parameter is not found, sites on one tensor disagree on its scale, or the result is not what was
            planned.
    """
    _require(model, artifact)
    source = GraphIndex(model)
    found = find_layers(source, artifact)
    result = _copy_without_weights(source, found)
    put_parameters(result, artifact)
    index = GraphIndex(result)
    copies = {node.output[0]: node for node in index.nodes}
    layers = tuple(replace(layer, node=copies[layer.result]) for layer in found)
    edit = _Edit(artifact, store)
    edit.quantize_weights(layers)
    if placement == "output":
        edit.quantize_outputs(layers)
    edit.quantize_inputs(layers)
    edit.apply(result, index)
    result.producer_name, result.producer_version = "gacq-deploy", gacq_deploy.__version__
    _ensure(model, result, expected_sites(artifact.plan, placement))
    return result


def needed_opset(plan: QuantPlan, opset: int) -> int:
    """Return the opset that the float graph needs: ``opset``, or a later one if weights are stored in blocks."""
    return max(opset, BLOCK_OPSET) if plan.weight_only else opset


def expected_sites(plan: QuantPlan, placement: Placement) -> tuple[Site, ...]:
    """Return the planned sites that a graph of this placement quantizes."""
    roles: tuple[Role, ...] = ("weight", "input", "output") if placement == "output" else ("weight", "input")
    return tuple(e.site for e in plan if e.site.role in roles)


def quantized_sites(model: onnx.ModelProto) -> frozenset[Site]:
    """Return the sites that are quantized in a graph, read off the graph alone.

    A module's role counts only if every node of that module has it.
    """
    index = GraphIndex(model)
    held: dict[Site, bool] = {}
    for node in index.of_type("Conv", "Gemm", "MatMul"):
        module = module_of(node)
        if module is None or len(node.input) < 2:
            continue
        facts: dict[Role, bool] = {
            "weight": _is_stored_codes(index, node.input[1]),
            "input": _is_pair(index, node.input[0]),
            "output": _is_quantized(index, node.output[0]),
        }
        for role, fact in facts.items():
            site = Site(module, role)
            held[site] = held.get(site, True) and fact
    return frozenset(site for site, fact in held.items() if fact)


def _require(model: onnx.ModelProto, artifact: CalibrationArtifact) -> None:
    opset = opset_of(model)
    if opset not in OPSETS:
        raise ExportError(
            f"The float graph has opset {opset}; Q/DQ needs {OPSETS.start} to {OPSETS.stop - 1}.",
            "Set export.opset in the recipe (20 is the default).",
        )
    if opset < needed_opset(artifact.plan, opset):
        raise ExportError(
            f"The float graph has opset {opset}; INT4 weights in blocks need {BLOCK_OPSET}.",
            f"Export the float graph at opset {BLOCK_OPSET} or {OPSETS.stop - 1}.",
        )
    present = sum(n.op_type in (QUANTIZE, DEQUANTIZE) for n in model.graph.node)
    if present:
        raise ExportError(f"The graph already holds {present} Q/DQ nodes; it must be the float graph.", _HINT)
    if not artifact.plan.modules:
        raise ExportError(
            "The artifact plans no layer: there is nothing to quantize.", "Correct quantization.rules."
        )
    for entry in artifact.plan:
        if entry.site.role != "weight" and (entry.spec.bits != 8 or entry.spec.axis is not None):
            raise ExportError(
                f"Site '{entry.site}' is planned with {entry.spec.bits} bits, axis {entry.spec.axis}; "
                "engines quantize activations to 8 bits per tensor.",
                "Set bits: 8 for inputs and outputs in quantization.rules.",
            )


def _copy_without_weights(source: GraphIndex, layers: Iterable[LayerNode]) -> onnx.ModelProto:
    """Copy the graph but for the float weights whose codes take their place: of a large model the larger part."""
    replaced = {id(layer.node) for layer in layers}

    def is_needed(tensor: str) -> bool:
        uses = source.readers(tensor)
        return tensor in source.outputs or any(id(u.node) not in replaced or u.position != 1 for u in uses)

    casts = {
        id(n) for n in source.of_type("Cast") if source.is_widened(n.output[0]) and not is_needed(n.output[0])
    }
    kept = {
        name
        for name, uses in source.consumers.items()
        if is_needed(name) and {id(u.node) for u in uses} - casts
    }
    result = without_initializers(source.model)
    if casts:
        replace_nodes(result, [node for node in source.nodes if id(node) not in casts])
    result.graph.initializer.extend(t for t in source.model.graph.initializer if t.name in kept)
    return result


def _ensure(before: onnx.ModelProto, after: onnx.ModelProto, expected: Iterable[Site]) -> None:
    wanted = set(expected)
    quantized = quantized_sites(after) & wanted
    if quantized != wanted:
        lost = sorted(str(s) for s in wanted - quantized)
        raise ExportError(
            f"{len(quantized)} of {len(wanted)} planned sites are quantized in the graph; missing: "
            f"{', '.join(lost[:5])}.",
            "This is a defect of the Q/DQ pass; please report the model's class.",
        )
    for side in ("input", "output"):
        if _serialized(getattr(before.graph, side)) != _serialized(getattr(after.graph, side)):
            raise ExportError(
                f"The Q/DQ pass changed the graph's {side}s.", "Please report the model's class."
            )
    check_legal(after)


def _serialized(values: Iterable[onnx.ValueInfoProto]) -> list[bytes]:
    return [value.SerializeToString() for value in values]


def check_legal(graph: onnx.ModelProto | Path) -> None:
    """Let ONNX check a graph's structure, types and shapes; one whose weights lie outside once it is a file.

    Raises:
        ExportError: with the checker's first line.
    """
    if isinstance(graph, onnx.ModelProto) and not is_whole(graph):
        return
    try:
        onnx.checker.check_model(str(graph) if isinstance(graph, Path) else graph, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        first = str(error).strip().partition("\n")[0]
        raise ExportError(
            f"The Q/DQ graph is not legal ONNX: {first}", "Please report the model's class."
        ) from error


@dataclass
class _Edit:
    """The changes to one graph: new initializers, and new nodes by the place where they belong."""

    artifact: CalibrationArtifact
    store: Store
    initializers: dict[str, Array] = field(default_factory=dict)
    before: dict[str, list[NodeProto]] = field(default_factory=dict)
    """First output of a node -> nodes to put before it."""
    after: dict[str, list[NodeProto]] = field(default_factory=dict)
    """Tensor -> nodes to put once it exists."""
    names: set[str] = field(default_factory=set)
    smoothed: set[str] = field(default_factory=set)

    def quantize_weights(self, layers: Iterable[LayerNode]) -> None:
        """Let every layer read codes through one dequantizer per module."""
        for layer in layers:
            site = Site(layer.module, "weight")
            dequantized = f"{site}.dequantized"
            if f"{site}.codes" not in self.initializers:
                stored = self._stored_weight(layer, site)
                self.initializers |= {f"{site}.{key}": value for key, value in stored.items()}
                inputs = [f"{site}.{key}" for key in stored]
                node = helper.make_node(DEQUANTIZE, inputs, [dequantized], name=f"{site}/{DEQUANTIZE}")
                node.attribute.extend(
                    helper.make_attribute(k, v) for k, v in self._along(layer, site).items()
                )
                self.before.setdefault(layer.result, []).append(set_module(node, layer.module))
            layer.node.input[1] = dequantized

    def _stored_weight(self, layer: LayerNode, site: Site) -> dict[str, Array]:
        """Return codes, scales and zero points as the layer's operator wants them."""
        params = self.artifact.params[site]
        codes, scale = np.asarray(params.codes), params.scale
        kind: np.dtype[Any] = np.dtype(np.int8)
        if self._block(site) is not None:
            kind = helper.tensor_dtype_to_np_dtype(TensorProto.INT4)
            scale = scale.T if layer.transposed else scale
        codes = codes.T if layer.transposed else codes
        return {
            "codes": codes.astype(kind, copy=False),
            "scale": scale,
            "zero_point": np.zeros(scale.shape, kind),
        }

    def _along(self, layer: LayerNode, site: Site) -> dict[str, int]:
        """Return along which axis scales lie: the output channels', or in blocks the input features'."""
        block = self._block(site)
        return {"axis": layer.axis} if block is None else {"axis": 1 - layer.axis, "block_size": block}

    def _block(self, site: Site) -> int | None:
        entry = self.artifact.plan.get(site)
        assert entry is not None, f"{site} is not planned"
        return entry.spec.block

    def quantize_outputs(self, layers: Iterable[LayerNode]) -> None:
        """Put a pair on every planned output; it takes over the tensor's name, so every reader reads it."""
        for layer in layers:
            site = Site(layer.module, "output")
            if self.artifact.plan.get(site) is None:
                continue
            if layer.node.op_type != "Conv":
                raise ExportError(
                    f"Site '{site}' is planned, but '{layer.node.name}' is no convolution.", _HINT
                )
            final = layer.result
            raw = f"{final}.float"
            self.before[raw] = self.before.pop(final, [])
            layer.node.output[0] = raw
            self._add_pair(site, raw, final)

    def quantize_inputs(self, layers: Iterable[LayerNode]) -> None:
        """Put one pair on every tensor that planned layers read, once for all that smooth it alike."""
        order = {e.site: i for i, e in enumerate(self.artifact.plan)}
        readers: dict[tuple[str, bytes], list[LayerNode]] = {}
        for layer in layers:
            if self._block(Site(layer.module, "weight")) is not None:
                continue
            factor = self.artifact.multiplier(Site(layer.module, "input"))
            readers.setdefault((layer.data, b"" if factor is None else factor.tobytes()), []).append(layer)
        for (tensor, _), group in readers.items():
            sites = sorted(
                {Site(layer.module, "input") for layer in group}, key=lambda s: order.get(s, len(order))
            )
            self._check_one_scale(tensor, sites)
            dequantized = self._add_pair(sites[0], self._smoothed(sites[0], tensor), None)
            for layer in group:
                layer.node.input[0] = dequantized

    def _smoothed(self, site: Site, tensor: str) -> str:
        """Return the tensor to quantize: ``tensor``, or its product with the site's smoothing."""
        factor = self.artifact.multiplier(site)
        if factor is None:
            return tensor
        name = _free_name(f"{site}/{SMOOTH}", self.smoothed)
        self.smoothed.add(name)
        self.initializers[f"{site}.smoothing"] = factor
        node = helper.make_node("Mul", [tensor, f"{site}.smoothing"], [f"{name}.smoothed"], name=name)
        self.after.setdefault(tensor, []).append(set_module(node, site.module))
        return f"{name}.smoothed"

    def _check_one_scale(self, tensor: str, sites: list[Site]) -> None:
        first = sites[0]
        for site in sites:
            if site not in self.artifact.params:
                raise ExportError(f"Site '{site}' is not planned, but the weight of its layer is.", _HINT)
            # bit for bit: scales that print alike may still differ
            one, other = self.artifact.params[first].scale, self.artifact.params[site].scale
            if one.tobytes() != other.tobytes():
                raise ExportError(
                    f"Sites '{first}' (scale {float(one):.9g}) and '{site}' (scale {float(other):.9g}) read "
                    f"one tensor, '{tensor}': it can have one scale only.",
                    "Calibrate again: sites on one tensor must be tied.",
                )

    def _add_pair(self, site: Site, tensor: str, result: str | None) -> str:
        """Quantize and dequantize ``tensor``; a module called twice has a second pair with the same scale."""
        name = _free_name(str(site), self.names)
        self.names.add(name)
        self.initializers[f"{site}.scale"] = self.artifact.params[site].scale
        self.initializers[f"{site}.zero_point"] = np.zeros((), np.int8)
        result = result or f"{name}.dequantized"
        parameters = [f"{site}.scale", f"{site}.zero_point"]
        quantize = helper.make_node(
            QUANTIZE, [tensor, *parameters], [f"{name}.quantized"], name=f"{name}/{QUANTIZE}"
        )
        dequantize = helper.make_node(
            DEQUANTIZE, [f"{name}.quantized", *parameters], [result], name=f"{name}/{DEQUANTIZE}"
        )
        pair = [set_module(quantize, site.module), set_module(dequantize, site.module)]
        self.after.setdefault(tensor, []).extend(pair)
        return result

    def apply(self, model: onnx.ModelProto, index: GraphIndex) -> None:
        """Write nodes and initializers into ``model``, in topological order."""
        ordered: list[NodeProto] = []
        self._follow(ordered, index.inputs)
        for node in index.nodes:
            ordered += self.before.get(node.output[0], [])
            ordered.append(node)
            self._follow(ordered, node.output)
        replace_nodes(model, ordered)
        for name, array in self.initializers.items():
            model.graph.initializer.append(self.store(array, name))
        drop_unused_initializers(model)

    def _follow(self, ordered: list[NodeProto], tensors: Iterable[str]) -> None:
        pending = list(tensors)
        while pending:
            nodes = self.after.pop(pending.pop(0), [])
            ordered += nodes
            pending += [name for node in nodes for name in node.output]


def _free_name(wanted: str, taken: Collection[str]) -> str:
    name, number = wanted, 2
    while name in taken:
        name, number = f"{wanted}#{number}", number + 1
    return name


def _is_stored_codes(index: GraphIndex, tensor: str) -> bool:
    node = index.producer(tensor)
    if node is None or node.op_type != DEQUANTIZE:
        return False
    codes = index.tensor(node.input[0])
    return codes is not None and codes.data_type in (TensorProto.INT8, TensorProto.INT4)


def _is_pair(index: GraphIndex, tensor: str) -> bool:
    node = index.producer(tensor)
    source = index.producer(node.input[0]) if node is not None and node.op_type == DEQUANTIZE else None
    return source is not None and source.op_type == QUANTIZE


def _is_quantized(index: GraphIndex, tensor: str) -> bool:
    readers = index.readers(tensor)
    if len(readers) == 1 and readers[0].node.op_type == "Add":  # a bias that stands behind its layer
        other = readers[0].node.input[1 - readers[0].position]
        return other in index.initializers and _is_quantized(index, readers[0].node.output[0])
    return tensor not in index.outputs and bool(readers) and all(u.node.op_type == QUANTIZE for u in readers)
