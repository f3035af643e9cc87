"""Tiny ONNX graphs in the denoiser's call shape: one convolution, one linear, with and without Q/DQ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CHANNELS, SIZE, CLASSES = 4, 8, 3
WEIGHT_BITS = 7
SAMPLE_SHAPE = (CHANNELS, SIZE, SIZE)
_FACTS = (("conv", (CHANNELS, CHANNELS, 3, 3), 0), ("linear", (CHANNELS, CHANNELS), 1))


def _weights(seed: int, bits: int) -> dict[str, np.ndarray]:
    rng, largest = np.random.default_rng(seed), 2 ** (bits - 1) - 1
    return {name: rng.integers(-largest, largest + 1, shape).astype(np.int8) for name, shape, _ in _FACTS}


def _rows() -> np.ndarray:
    return np.linspace(-1, 1, CLASSES * CHANNELS).reshape(CLASSES, -1)


def denoiser_graph(*, quantized: bool = False, seed: int = 0, bits: int = WEIGHT_BITS) -> onnx.ModelProto:
    """Return ``output = conv(sample) + class row + timestep / 1000 + linear(spatial mean)``.

    ``quantized`` writes the uint8 flavour that ONNX Runtime's integer kernels take: Q/DQ on the convolution's
    input and output and on the linear's input, int32 bias. Weights of 7 bits are exact in every engine on every
    processor; of 8 they are not.
    """
    nodes: list[onnx.NodeProto] = []
    inits = [
        numpy_helper.from_array(_rows().astype(np.float32), "rows"),
        numpy_helper.from_array(np.array([1, 2], np.int64), "axes12"),
        numpy_helper.from_array(np.array([2, 3], np.int64), "axes23"),
        numpy_helper.from_array(np.array([1, 2, 3], np.int64), "axes123"),
        numpy_helper.from_array(np.float32(1000), "thousand"),
    ]
    weight = {
        name: _layer_weight(name, codes, quantized, nodes, inits)
        for name, codes in _weights(seed, bits).items()
    }
    bias = _conv_bias(quantized, nodes, inits)
    sample = _fake("sample", "conv:input", 0.03, nodes, inits) if quantized else "sample"
    nodes.append(
        helper.make_node("Conv", [sample, weight["conv"], bias], ["y"], "node_conv", pads=[1, 1, 1, 1])
    )
    y = _fake("y", "conv:output", 0.05, nodes, inits) if quantized else "y"
    nodes.append(helper.make_node("ReduceMean", [y, "axes23"], ["mean"], keepdims=0))
    mean = _fake("mean", "linear:input", 0.01, nodes, inits) if quantized else "mean"
    nodes += [
        helper.make_node("MatMul", [mean, weight["linear"]], ["lin"], "node_linear"),
        helper.make_node("Gather", ["rows", "class_labels"], ["row"]),
        helper.make_node("Unsqueeze", ["lin", "axes23"], ["lin4"]),
        helper.make_node("Unsqueeze", ["row", "axes23"], ["row4"]),
        helper.make_node("Add", ["lin4", "row4"], ["wide"]),
        helper.make_node("Cast", ["timestep"], ["t"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["t", "thousand"], ["t1"]),
        helper.make_node("Unsqueeze", ["t1", "axes123"], ["t4"]),
        helper.make_node("Add", [y, "wide"], ["part"]),
        helper.make_node("Add", ["part", "t4"], ["output"]),
    ]
    inputs = [
        helper.make_tensor_value_info("sample", TensorProto.FLOAT, ["batch", *SAMPLE_SHAPE]),
        helper.make_tensor_value_info("timestep", TensorProto.INT64, ["batch"]),
        helper.make_tensor_value_info("class_labels", TensorProto.INT64, ["batch"]),
    ]
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", *SAMPLE_SHAPE])
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(nodes, "denoiser", inputs, [output], [i for i in inits if i.name in used])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def reference(feeds: dict[str, np.ndarray], seed: int = 0) -> np.ndarray:
    """Compute the float graph in numpy, float64."""
    codes = _weights(seed, WEIGHT_BITS)
    sample = feeds["sample"].astype(np.float64)
    padded = np.pad(sample, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    y = np.einsum("nchwij,ocij->nohw", windows, codes["conv"] * 0.001) + 0.01
    added = y.mean((2, 3)) @ (codes["linear"] * 0.002) + _rows()[feeds["class_labels"]]
    return y + added[:, :, None, None] + feeds["timestep"][:, None, None, None] / 1000


def feeds(batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Return seeded inputs of the graph."""
    rng = np.random.default_rng(seed)
    return {
        "sample": rng.standard_normal((batch, *SAMPLE_SHAPE), dtype=np.float32),
        "timestep": rng.integers(0, 1000, batch),
        "class_labels": rng.integers(0, CLASSES, batch),
    }


def save_external(model: onnx.ModelProto, path: Path) -> Path:
    """Save with the larger tensors in ``<name>.data`` beside the file; return that data file."""
    data = path.with_name(path.name + ".data")
    onnx.save_model(
        model,
        str(path),
        save_as_external_data=True,
        location=data.name,
        size_threshold=100,
        convert_attribute=False,
    )
    return data


def _layer_weight(name, codes, quantized, nodes, inits) -> str:
    axis = 0 if name == "conv" else 1
    scale = np.full(CHANNELS, 0.001 if name == "conv" else 0.002, np.float32)
    if not quantized:
        inits.append(numpy_helper.from_array(codes.astype(np.float32) * scale[0], f"{name}.weight"))
        return f"{name}.weight"
    inits += [
        numpy_helper.from_array(codes, f"{name}:weight.codes"),
        numpy_helper.from_array(scale, f"{name}:weight.scale"),
        numpy_helper.from_array(np.zeros(CHANNELS, np.int8), f"{name}:weight.zero_point"),
    ]
    inputs = [f"{name}:weight.codes", f"{name}:weight.scale", f"{name}:weight.zero_point"]
    nodes.append(
        helper.make_node(
            "DequantizeLinear", inputs, [f"{name}:w"], f"{name}:weight/DequantizeLinear", axis=axis
        )
    )
    return f"{name}:w"


def _conv_bias(quantized, nodes, inits) -> str:
    if not quantized:
        inits.append(numpy_helper.from_array(np.full(CHANNELS, 0.01, np.float32), "conv.bias"))
        return "conv.bias"
    scale = np.full(CHANNELS, np.float32(0.03) * np.float32(0.001), np.float32)
    inits += [
        numpy_helper.from_array(np.round(0.01 / scale).astype(np.int32), "conv:bias.codes"),
        numpy_helper.from_array(scale, "conv:bias.scale"),
        numpy_helper.from_array(np.zeros(CHANNELS, np.int32), "conv:bias.zero_point"),
    ]
    inputs = ["conv:bias.codes", "conv:bias.scale", "conv:bias.zero_point"]
    nodes.append(
        helper.make_node("DequantizeLinear", inputs, ["conv:b"], "conv:bias/DequantizeLinear", axis=0)
    )
    return "conv:b"


def _fake(tensor, site, scale, nodes, inits) -> str:
    inits += [
        numpy_helper.from_array(np.float32(scale), f"{site}.scale"),
        numpy_helper.from_array(np.uint8(128), f"{site}.zero_point"),
    ]
    parameters = [f"{site}.scale", f"{site}.zero_point"]
    nodes += [
        helper.make_node("QuantizeLinear", [tensor, *parameters], [f"{site}:q"], f"{site}/QuantizeLinear"),
        helper.make_node(
            "DequantizeLinear", [f"{site}:q", *parameters], [f"{site}:dq"], f"{site}/DequantizeLinear"
        ),
    ]
    return f"{site}:dq"
