"""Does ONNX Runtime add 8-bit products in 16 bits on this processor, and does the option the engines set avoid it?

``python benchmarks/ort_saturation.py`` prints it for one product of constant weights and the largest activation. The
library has no switch for its instructions, so a processor without VNNI is emulated, by Debian's ``qemu-user``:
``qemu-x86_64 -cpu Haswell .venv/bin/python benchmarks/ort_saturation.py``.
"""

from __future__ import annotations

import os

import numpy as np
from onnx import TensorProto, helper, numpy_helper

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime as ort

CHANNELS = 64
PAIRS = ((127, 127), (65, 64), (64, 64), (127, 1))
"""Weights along the input channels, repeated; the first two exceed 128 together."""
ROWS = np.full((8, CHANNELS), 127.5, np.float32)


def product(pair: tuple[int, int]) -> bytes:
    """Return a MatMul of uint8 activations, zero point 0, and int8 weights, in Q/DQ form."""
    weights = np.broadcast_to(np.resize(np.array(pair, np.int8), CHANNELS)[:, None], (CHANNELS, 16)).copy()
    constants = {
        "w": weights,
        "s": np.float32(0.5),
        "z": np.uint8(0),
        "ws": np.float32(0.25),
        "wz": np.int8(0),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["v"]),
        helper.make_node("MatMul", ["d", "v"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ROWS.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return bytes(model.SerializeToString())


def run(model: bytes, *, exact: bool = False, optimize: bool = True) -> np.ndarray:
    """Run it, with the exact kernels if asked for, or node by node."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    if exact:
        options.add_session_config_entry("session.x64quantprecision", "1")
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, {"x": ROWS})[0]
    return result


def main() -> None:
    """Print a line for each pair of weights."""
    for pair in PAIRS:
        model = product(pair)
        reference = run(model, optimize=False)
        fast, exact = (bool(np.array_equal(run(model, exact=e), reference)) for e in (False, True))
        print(
            f"weights {pair}: fast kernels {'exact' if fast else 'wrong'}, exact ones {'exact' if exact else 'wrong'}"
        )


if __name__ == "__main__":
    main()
