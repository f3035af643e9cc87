"""Is a recorded tensor laid out as the graph has it? Exporters fold a padding into the convolution that follows."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import ModelProto, TensorShapeProto, ValueInfoProto

from gacq_deploy.graph.index import GraphIndex, attribute
from gacq_deploy.graph.quantizers import Quantizer, activation_quantizers
from gacq_deploy.spec import Array

_Dims = tuple[int | None, ...]


def fit_recordings(model: ModelProto, recorded: Mapping[str, Array]) -> dict[str, Array]:
    """Return the recordings (site -> ``[P, ...]``) that fit the graph's quantizers, in the graph's layout.

    Where torch pads and then quantizes, the graph quantizes and then pads, which is the same: 0 stays 0. Such a
    recording loses its border, if that is zero. A recording that fits in no way is left out.
    """
    index = GraphIndex(model)
    shapes = {v.name: _dims(v) for v in (*model.graph.value_info, *model.graph.input)}
    fitted = {}
    for quantizer in activation_quantizers(index):
        recording = recorded.get(quantizer.site)
        if recording is None:
            continue
        wanted = shapes.get(quantizer.quantize.input[0])
        for candidate in (recording, _without_border(index, quantizer, recording)):
            if candidate is not None and _fits(candidate, wanted):
                fitted[quantizer.site] = candidate
                break
    return fitted


def _dims(value: ValueInfoProto) -> _Dims | None:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return tuple(_fixed_size(dimension) for dimension in tensor.shape.dim)


def _fixed_size(dimension: TensorShapeProto.Dimension) -> int | None:
    return dimension.dim_value if dimension.HasField("dim_value") else None


def _fits(recording: Array, wanted: _Dims | None) -> bool:
    if wanted is None:
        return True
    # the first axis counts the states
    sizes = zip(recording.shape[1:], wanted[1:], strict=False)
    return recording.ndim == len(wanted) and all(want in (None, size) for size, want in sizes)


def _without_border(index: GraphIndex, quantizer: Quantizer, recording: Array) -> Array | None:
    """Cut off the padding that the one convolution behind the quantizer does by itself; None if it is not zero."""
    readers = [use.node for d in quantizer.dequantize for use in index.readers(d.output[0])]
    pads = attribute(readers[0], "pads", None) if len(readers) == 1 and readers[0].op_type == "Conv" else None
    if not pads or len(pads) != 2 * (recording.ndim - 2):
        return None
    spatial = zip(pads[: len(pads) // 2], pads[len(pads) // 2 :], recording.shape[2:], strict=True)
    inner = recording[(slice(None), slice(None), *(slice(low, size - high) for low, high, size in spatial))]
    return np.ascontiguousarray(inner) if np.count_nonzero(inner) == np.count_nonzero(recording) else None
