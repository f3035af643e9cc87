"""Q/DQ files as other tools write them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tests.support.graphs.graph_sketch import Sketch
from tests.support.graphs.layer_graphs import LayerGraph, random_array

SHAPE = (1, 4, 16, 16)


def float_file(path: Path) -> Path:
    """Write a small float network: convolution, SiLU, convolution."""
    graph = LayerGraph(opset=20)
    graph.conv("one", "x", "h", random_array(8, 4, 3, 3, scale=0.1), random_array(8))
    graph.add("Sigmoid", ["h"], "gate")
    graph.add("Mul", ["h", "gate"], "silu")
    graph.conv("two", "silu", "y", random_array(4, 8, 3, 3, seed=1, scale=0.1), random_array(4))
    onnx.save(graph.model(SHAPE, "y", SHAPE), path)
    return path


def quantized_by_onnxruntime(path: Path, **options: Any) -> Path:
    """Write what ONNX Runtime's own quantizer makes of :func:`float_file`; its defaults unless told otherwise."""
    from onnxruntime import quantization as ort

    class Reader(ort.CalibrationDataReader):
        def __init__(self) -> None:
            self._feeds: Iterator[dict[str, Any]] = iter(
                {"x": random_array(*SHAPE, seed=s)} for s in range(3)
            )

        def get_next(self) -> dict[str, Any] | None:
            return next(self._feeds, None)

    known = {k: getattr(ort, v[0])[v[1]] for k, v in options.items() if isinstance(v, tuple)}
    source = float_file(path.with_name("float.onnx"))
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ort.quantize_static(source, path, Reader(), **{**options, **known})
    finally:
        logging.disable(logging.NOTSET)
    return path


SIGNED: dict[str, Any] = {
    "activation_type": ("QuantType", "QInt8"),
    "weight_type": ("QuantType", "QInt8"),
    "per_channel": True,
    "extra_options": {"ActivationSymmetric": True, "WeightSymmetric": True},
}
"""Symmetric int8, with the int32 bias that its quantizer always writes unless told not to."""
FOR_TENSORRT = {**SIGNED, "extra_options": {**SIGNED["extra_options"], "QuantizeBias": False}}
OPERATORS = {**SIGNED, "quant_format": ("QuantFormat", "QOperator")}


def float_weights_quantized_in_the_graph(path: Path) -> Path:
    """Write a network in ModelOpt's older form: float weights behind Q and DQ."""
    s = Sketch(inputs={"x": SHAPE})
    weight = s.store("w", random_array(8, 4, 3, 3, scale=0.1))
    s.conv(s.pair("x", "a"), "y", weight=s.pair(weight, "q", scale=np.full(8, 0.002, np.float32), axis=0))
    onnx.save(s.model(), path)
    return path
