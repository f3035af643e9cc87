"""How is one segment of a graph judged without the errors of the others? ONNX surgery for the local evidence.

At every activation quantizer the graph is cut. Downstream, the quantizer reads a new graph input that is fed
with the reference's own tensor; it lies on the quantizer's grid already, so the quantizer passes it through.
Upstream, the freshly computed tensor goes through a copy of the quantizer to a new graph output. One run then
gives what every segment makes of the reference's inputs, and each layer keeps a quantizer on both sides, as
integer kernels need.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnx import ModelProto, TensorProto, helper

from gacq_deploy.export.layers import QUANTIZABLE_OPERATORS
from gacq_deploy.graph.index import GraphIndex, module_of
from gacq_deploy.graph.quantizers import Quantizer, activation_quantizers, copy_between
from gacq_deploy.spec import Array

_BATCH = "batch"


@dataclass(frozen=True)
class Segment:
    """One cut: feed ``given`` with the reference's tensor, read what this graph computes at ``computed``."""

    site: str
    given: str
    computed: str


@dataclass(frozen=True)
class CutGraph:
    """A graph cut at its activation quantizers, in execution order.

    ``covered`` holds every site whose tensor some segment ends in, sites that share a quantizer included.
    """

    model: ModelProto
    segments: tuple[Segment, ...]
    covered: frozenset[str]


def cut_at_quantizers(model: ModelProto, recorded: Mapping[str, Array]) -> CutGraph:
    """Cut at every activation quantizer whose site is in ``recorded`` (site -> ``[P, ...]``, for the shapes).

    A quantizer without a recording stays in place, and its sites stay uncovered.
    """
    cut = ModelProto()
    cut.CopyFrom(model)
    index = GraphIndex(cut)
    quantizers = [q for q in activation_quantizers(index) if q.site in recorded and len(q.dequantize) == 1]
    covered = _covered(index, quantizers)
    segments = tuple(_cut(cut, q, recorded[q.site].shape) for q in quantizers)
    return CutGraph(cut, segments, covered)


def expose_quantized(model: ModelProto) -> CutGraph:
    """Return the graph uncut, with every activation quantizer's dequantized tensor as an extra output."""
    exposed = ModelProto()
    exposed.CopyFrom(model)
    index = GraphIndex(exposed)
    quantizers = [q for q in activation_quantizers(index) if len(q.dequantize) == 1]
    segments = []
    for quantizer in quantizers:
        name = quantizer.dequantize[0].output[0]
        if name not in index.outputs:
            exposed.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
        segments.append(Segment(quantizer.site, name, name))
    return CutGraph(exposed, tuple(segments), _covered(index, quantizers))


def _covered(index: GraphIndex, quantizers: list[Quantizer]) -> frozenset[str]:
    dequantized = {q.dequantize[0].output[0] for q in quantizers}
    layers = index.of_type(*QUANTIZABLE_OPERATORS)
    inputs = {f"{module_of(n)}:input" for n in layers if n.input[0] in dequantized}
    return frozenset({q.site for q in quantizers} | inputs)


def _cut(model: ModelProto, quantizer: Quantizer, shape: tuple[int, ...]) -> Segment:
    segment = Segment(quantizer.site, f"{quantizer.site}/given", f"{quantizer.site}/computed")
    fresh, codes = quantizer.quantize.input[0], f"{quantizer.site}/computed.codes"
    model.graph.node.extend(
        (
            copy_between(quantizer.quantize, fresh, codes),
            copy_between(quantizer.dequantize[0], codes, segment.computed),
        )
    )
    quantizer.quantize.input[0] = segment.given
    dims: list[str | int | None] = [_BATCH, *shape[1:]]
    model.graph.input.append(helper.make_tensor_value_info(segment.given, TensorProto.FLOAT, dims))
    model.graph.output.append(helper.make_tensor_value_info(segment.computed, TensorProto.FLOAT, dims))
    return segment
