"""Does a file say exactly what the artifact says? Codes, scales, zero points, axes; nothing else changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto

from gacq_deploy.artifact.artifact import CalibrationArtifact
from gacq_deploy.errors import ExportError
from gacq_deploy.export.cpu_flavour import join_split_bias
from gacq_deploy.export.layers import QUANTIZABLE_OPERATORS
from gacq_deploy.export.parameters import apply_parameters, find_parameters
from gacq_deploy.graph.index import (
    DEQUANTIZE,
    QUANTIZE,
    GraphIndex,
    attribute,
    module_of,
    weight_axis,
    with_float_weights,
)
from gacq_deploy.graph.quantizers import (
    Quantizer,
    activation_quantizers,
    constant_input,
    in_module_layout,
    is_quantization,
    stored_dequantizers,
)
from gacq_deploy.parity.structure import wiring_differences
from gacq_deploy.spec import Array, Role, Site
from gacq_deploy.storage.digests import digest_array


@dataclass(frozen=True)
class Flavour:
    """What a Q/DQ file holds beside weights: its name, the torch placement it equals, its activation type."""

    file: str
    placement: str
    roles: tuple[Role, ...]
    dtype: str
    zero_point: int


CANONICAL = Flavour("int8.onnx", "input_quant", ("input",), "int8", 0)
CPU = Flavour("int8.cpu.onnx", "output_quant", ("input", "output"), "uint8", 128)


@dataclass(frozen=True)
class Difference:
    """One thing that is not as it should be: where, and what."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def compare_float_file(artifact: CalibrationArtifact, graph: ModelProto) -> list[Difference]:
    """Check that the float graph holds the weight and the parameters that calibration started from."""
    index = GraphIndex(graph)
    layers = float_layers(artifact, index)
    found = [
        Difference(m, "no layer of the float graph has this weight")
        for m in artifact.plan.modules
        if m not in layers
    ]
    found.extend(
        Difference(node.name, "a float graph holds a quantization node")
        for node in index.nodes
        if is_quantization(node)
    )
    try:
        find_parameters(index, artifact)
    except ExportError as error:
        found.append(Difference("parameters", error.message))
    return found


def compare_quantized_file(
    artifact: CalibrationArtifact, float_graph: ModelProto, graph: ModelProto, flavour: Flavour
) -> list[Difference]:
    """Return every difference between a Q/DQ file and what artifact and float graph determine it to be.

    Outside its quantizers the file must be the float graph with the artifact's retrained parameters in it; a weight
    that is stored in half precision is its float32 values.
    """
    try:
        base = apply_parameters(with_float_weights(float_graph), artifact)
    except ExportError as error:
        return [Difference("parameters", error.message)]
    whole = with_float_weights(join_split_bias(graph) if flavour is CPU else graph)
    return list(_Comparison(artifact, base, whole, flavour).differences())


def float_layers(artifact: CalibrationArtifact, index: GraphIndex) -> dict[str, list[NodeProto]]:
    """Return module -> the float graph's layers that hold the module's calibrated weight, by digest."""
    layers: dict[str, list[NodeProto]] = {}
    planned = set(artifact.plan.modules)
    for node in index.nodes:
        module = module_of(node)
        weight = constant_input(index, node, 1) if node.op_type in QUANTIZABLE_OPERATORS else None
        if module not in planned or weight is None:
            continue
        if digest_array(in_module_layout(node, weight)) == artifact.weight_digests.get(f"{module}:weight"):
            layers.setdefault(module, []).append(node)
    return layers


class _Comparison:
    """One pass over a Q/DQ graph; every check yields differences and goes on."""

    def __init__(
        self, artifact: CalibrationArtifact, base: ModelProto, graph: ModelProto, flavour: Flavour
    ) -> None:
        self._artifact = artifact
        self._flavour = flavour
        self._index = GraphIndex(graph)
        self._float = GraphIndex(base)
        self._quantizers = activation_quantizers(self._index)
        self._by_dequantized = {dq.output[0]: q for q in self._quantizers for dq in q.dequantize}
        self._tie = {str(e.site): e.tie for e in artifact.plan if e.site.role in flavour.roles}
        self._blocks = {
            e.site.module: e.spec.block for e in artifact.plan.of_role("weight") if e.spec.block is not None
        }
        self._float_layers = float_layers(artifact, self._float)
        self._layers: dict[str, list[NodeProto]] = {}
        self._biases: dict[str, str] = {}
        self._smoothed: set[str] = set()

    def differences(self) -> Iterator[Difference]:
        for module in self._artifact.plan.modules:
            yield from self._weight(module)
        for quantizer in self._quantizers:
            yield from self._quantizer(quantizer)
        for module in self._artifact.plan.modules:
            yield from self._layer_inputs(module)
            yield from self._layer_output(module)
        yield from self._foreign_dequantizers()
        weights = {f"{m}:weight/DequantizeLinear": m for m in self._artifact.plan.modules}
        float_layers, smoothed = self._float_layers, self._smoothed
        for where, what in wiring_differences(self._float, self._index, float_layers, weights, smoothed):
            yield Difference(where, what)

    def _weight(self, module: str) -> Iterator[Difference]:
        where = f"{module}:weight"
        nodes = [n for n in stored_dequantizers(self._index) if n.name == f"{where}/DequantizeLinear"]
        if len(nodes) != 1:
            yield Difference(where, f"{len(nodes)} dequantizers of its codes, expected 1")
            return
        dequantize = nodes[0]
        readers = self._index.readers(dequantize.output[0])
        if not readers or any(
            n.op_type not in QUANTIZABLE_OPERATORS or position != 1 for n, position in readers
        ):
            yield Difference(
                where, "its dequantized weight is not read by a layer, as weight, and nothing else"
            )
            return
        layer = self._layers.setdefault(module, [n for n, _ in readers])[0]
        yield from self._codes(module, layer, dequantize)
        yield from self._layout(module, layer, dequantize)

    def _codes(self, module: str, layer: NodeProto, dequantize: NodeProto) -> Iterator[Difference]:
        """Compare what is stored: codes, scales and zero points."""
        where, params = f"{module}:weight", self._artifact.params[Site(module, "weight")]
        stored, codes = self._index.tensor(dequantize.input[0]), self._index.constant(dequantize.input[0])
        if stored is None or codes is None or params.codes is None:
            yield Difference(where, "its codes are not stored")
            return
        if stored.data_type == TensorProto.INT4 and module in self._blocks:
            codes = codes.astype(np.int8)  # the artifact keeps a code in a byte
        elif module in self._blocks:
            yield Difference(where, "its codes are not INT4")
        scale = constant_input(self._index, dequantize, 1)
        if scale is not None and scale.ndim == 2:
            scale = in_module_layout(layer, scale)
        yield from _same(where, "codes", in_module_layout(layer, codes), params.codes)
        yield from _same(where, "scale", scale, params.scale)
        zero_point = constant_input(self._index, dequantize, 2)
        if zero_point is not None and np.any(zero_point):
            yield Difference(where, "its zero point is not 0")

    def _layout(self, module: str, layer: NodeProto, dequantize: NodeProto) -> Iterator[Difference]:
        """Compare along which axis scales lie: one an output channel, or in blocks along the input features."""
        codes = self._index.tensor(dequantize.input[0])
        rank = 0 if codes is None else len(codes.dims)
        if rank == 0:
            return
        where, channels, block = f"{module}:weight", weight_axis(layer, rank), self._blocks.get(module)
        axis, size = attribute(dequantize, "axis", 1) % rank, attribute(dequantize, "block_size", 0)
        if size != (block or 0):
            yield Difference(where, f"it is dequantized in blocks of {size}, planned are {block or 'none'}")
        elif block is not None and axis == channels:
            yield Difference(where, f"its blocks lie along axis {axis}, the output channels'")
        elif block is None and axis != channels:
            yield Difference(where, f"it is dequantized along axis {axis}, output channels are on {channels}")

    def _quantizer(self, quantizer: Quantizer) -> Iterator[Difference]:
        site = quantizer.site
        if site not in self._tie or not quantizer.quantize.name.endswith("/QuantizeLinear"):
            yield Difference(quantizer.quantize.name, "a quantizer that is not in the plan")
            return
        if [n.name for n in quantizer.dequantize] != [f"{site}/DequantizeLinear"]:
            yield Difference(site, f"{len(quantizer.dequantize)} dequantizers read its codes, expected 1")
        if sum(q.site == site for q in self._quantizers) != 1:
            yield Difference(site, "it is quantized more than once")
        scale = self._artifact.params[Site.parse(site)].scale
        zero_point = np.array(self._flavour.zero_point, self._flavour.dtype)
        for node in (quantizer.quantize, *quantizer.dequantize):
            yield from _same(f"{site} ({node.op_type})", "scale", constant_input(self._index, node, 1), scale)
            yield from _same(
                f"{site} ({node.op_type})", "zero point", constant_input(self._index, node, 2), zero_point
            )

    def _layer_inputs(self, module: str) -> Iterator[Difference]:
        site = f"{module}:input"
        for layer in self._layers.get(module, ()):
            quantizer = self._by_dequantized.get(layer.input[0])
            if module in self._blocks:
                if quantizer is not None:
                    yield Difference(site, "the layer's input is quantized, and was to stay float")
            elif quantizer is None:
                yield Difference(site, "the layer's input is not quantized")
            elif self._tie.get(quantizer.site) != self._tie[site]:
                yield Difference(site, f"the layer reads the quantizer of '{quantizer.site}', another tie")
            else:
                yield from self._smoothing(module, quantizer)
                if len(layer.input) > 2:
                    yield from self._bias(module, layer)

    def _smoothing(self, module: str, quantizer: Quantizer) -> Iterator[Difference]:
        """Find the multiplication before a smoothed layer's quantizer; any other one is up to the wiring check."""
        site = Site(module, "input")
        factor = self._artifact.multiplier(site)
        if factor is None:
            return
        tensor = quantizer.quantize.input[0]
        node = self._index.producer(tensor)
        if node is None or node.op_type != "Mul":
            yield Difference(str(site), "its input is not smoothed")
            return
        unlike = list(_same(str(site), "smoothing", constant_input(self._index, node, 1), factor))
        yield from unlike
        if any(use.node.op_type != QUANTIZE for use in self._index.readers(tensor)):
            yield Difference(str(site), "its smoothed input is read beside its quantizer")
        elif not unlike:
            self._smoothed.add(tensor)

    def _layer_output(self, module: str) -> Iterator[Difference]:
        site = f"{module}:output"
        if site not in self._tie:
            return
        quantizer = next((q for q in self._quantizers if q.site == site), None)
        if quantizer is None:
            yield Difference(site, "the layer's output is not quantized")
            return
        tensor = quantizer.quantize.input[0]
        producer = self._index.producer(tensor)
        if producer is None or module_of(producer) != module:
            yield Difference(site, "its quantizer reads a tensor that the layer does not make")
        if len(self._index.readers(tensor)) != 1 or tensor in self._index.outputs:
            yield Difference(site, "the layer's float output is read beside its quantizer")

    def _bias(self, module: str, layer: NodeProto) -> Iterator[Difference]:
        dequantize = self._index.producer(layer.input[2])
        if dequantize is None or dequantize.op_type != DEQUANTIZE:
            return  # float bias: the wiring check compares it bit for bit
        where = f"{module} bias"
        expected = self._expected_bias(module)
        if self._flavour is not CPU or expected is None:
            yield Difference(where, "it is quantized")
            return
        codes, scale = expected
        self._biases[dequantize.name] = module
        yield from _same(where, "codes", self._index.constant(dequantize.input[0]), codes)
        yield from _same(where, "scale", constant_input(self._index, dequantize, 1), scale)
        zero_point = constant_input(self._index, dequantize, 2)
        if zero_point is not None and np.any(zero_point):
            yield Difference(where, "its zero point is not 0")

    def _expected_bias(self, module: str) -> tuple[Array, Array] | None:
        nodes = self._float_layers.get(module, [])
        bias = constant_input(self._float, nodes[0], 2) if nodes else None
        if bias is None:
            return None
        x = self._artifact.params[Site(module, "input")].scale
        scale = x * self._artifact.params[Site(module, "weight")].scale
        codes = np.rint(bias.astype(np.float64) / scale.astype(np.float64))
        return np.clip(codes, -(2**31), 2**31 - 1).astype(np.int32), scale.astype(np.float32)

    def _foreign_dequantizers(self) -> Iterator[Difference]:
        known = {f"{m}:weight/DequantizeLinear" for m in self._artifact.plan.modules} | set(self._biases)
        for node in self._index.of_type(DEQUANTIZE):
            if node.name not in known and node.output[0] not in self._by_dequantized:
                yield Difference(node.name, "a dequantizer that is not in the plan")


def _same(where: str, what: str, actual: Array | None, expected: Array) -> Iterator[Difference]:
    """Yield a difference unless dtype, shape and every bit agree."""
    if actual is None:
        yield Difference(where, f"{what}: missing, or computed at run time")
    elif actual.dtype != expected.dtype or actual.shape != expected.shape:
        yield Difference(
            where,
            f"{what}: {actual.dtype}{list(actual.shape)}, expected {expected.dtype}{list(expected.shape)}",
        )
    elif actual.tobytes() != expected.tobytes():
        unequal = actual != expected
        first: tuple[int, ...] = ()  # 0 and -0 are equal and differ in a bit
        if unequal.any():
            first = tuple(map(int, np.argwhere(unequal)[0]))
        yield Difference(
            where,
            f"{what}: {int(unequal.sum())} of {actual.size} values differ, first at {list(first)}: "
            f"{actual[first]} instead of {expected[first]}",
        )
