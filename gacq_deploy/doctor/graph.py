"""On which graph is an engine tried?"""

from __future__ import annotations

import numpy as np
from onnx import GraphProto, TensorProto, helper, numpy_helper


def full_range_graph() -> bytes:
    """Return a product of int8 activations [batch, 32] and the largest int8 weights [32, 8]: the hardest sums."""
    scale, zero = np.ones(1, np.float32)[0], np.zeros(1, np.int8)[0]
    constants = {"scale": scale, "zero": zero, "weight": np.full((32, 8), 127, np.int8)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["codes"]),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["values"]),
        helper.make_node("DequantizeLinear", ["weight", "scale", "zero"], ["weights"]),
        helper.make_node("MatMul", ["values", "weights"], ["y"], "layer"),
    ]
    graph = helper.make_graph(
        nodes,
        "doctor",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return _serialized(graph)


def one_node_graph() -> bytes:
    """Return ``y = x + x`` for float32 ``x`` [batch, 3]."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "doctor",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
    )
    return _serialized(graph)


def _serialized(graph: GraphProto) -> bytes:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    serialized: bytes = model.SerializeToString()
    return serialized
