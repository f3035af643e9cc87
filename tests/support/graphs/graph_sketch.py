"""Small Q/DQ graphs for tests, written node by node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Q, DQ = "QuantizeLinear", "DequantizeLinear"
CODES = np.random.default_rng(0).integers(-127, 128, (4, 4, 3, 3)).astype(np.int8)
SCALES = np.full(4, 0.01, np.float32)


@dataclass
class Sketch:
    """A small graph under construction: ``x`` [1, 4, 8, 8] in, ``y`` out."""

    opset: int = 20
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    stored: list[onnx.TensorProto] = field(default_factory=list)
    domains: list[str] = field(default_factory=list)
    inputs: dict[str, Sequence[int]] = field(default_factory=lambda: {"x": [1, 4, 8, 8]})

    def store(self, name: str, value: Any, dtype: Any = np.float32) -> str:
        self.stored.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def node(
        self, op_type: str, inputs: Sequence[str], output: str, name: str = "", **attributes: Any
    ) -> str:
        self.nodes.append(helper.make_node(op_type, inputs, [output], name or output, **attributes))
        return output

    def pair(
        self, data: str, name: str, scale: Any = 0.1, zero: Any = 0, dtype: Any = np.int8, **attributes: Any
    ) -> str:
        """Quantize and dequantize ``data``."""
        half = isinstance(scale, np.float16)
        self.store(f"{name}.scale", scale, np.float16 if half else np.float32)
        self.store(f"{name}.zero", np.full(np.shape(scale), zero, dtype), dtype)
        self.node(Q, [data, f"{name}.scale", f"{name}.zero"], f"{name}.codes", f"{name}/Q", **attributes)
        return self.dequantize(f"{name}.codes", f"{name}.scale", f"{name}.zero", name, **attributes)

    def dequantize(self, codes: str, scale: str, zero: str, name: str, **attributes: Any) -> str:
        return self.node(DQ, [codes, scale, zero], f"{name}.dequantized", f"{name}/DQ", **attributes)

    def weight(self, name: str, codes: Any, scale: Any, axis: int = 0, dtype: Any = np.int8) -> str:
        """Store codes and dequantize them."""
        self.store(f"{name}.codes", codes, dtype)
        half = np.asarray(scale).dtype == np.float16
        self.store(f"{name}.scale", scale, np.float16 if half else np.float32)
        self.store(f"{name}.zero", np.zeros(np.shape(scale)), dtype)
        return self.dequantize(f"{name}.codes", f"{name}.scale", f"{name}.zero", name, axis=axis)

    def conv(self, data: str, output: str = "y", *extra: str, weight: str = "") -> str:
        weight = weight or self.weight(f"{output}.w", CODES, SCALES)
        return self.node("Conv", [data, weight, *extra], output, f"{output}/Conv", pads=[1, 1, 1, 1])

    def model(self, output: str = "y") -> onnx.ModelProto:
        inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in self.inputs.items()]
        outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)]
        graph = helper.make_graph(self.nodes, "g", inputs, outputs, self.stored)
        opsets = [helper.make_opsetid("", self.opset), *(helper.make_opsetid(d, 1) for d in self.domains)]
        return helper.make_model(graph, opset_imports=opsets)
