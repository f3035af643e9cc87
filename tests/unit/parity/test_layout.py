from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from gacq_deploy.parity.layout import fit_recordings

SITE = "down.conv:input"


def padded_conv(pads: list[int]) -> onnx.ModelProto:
    """sample [batch, 2, 4, 4] -> Q/DQ -> Conv 3x3 of stride 2 that pads by itself."""
    inits = [
        numpy_helper.from_array(np.float32(0.1), "s"),
        numpy_helper.from_array(np.int8(0), "z"),
        numpy_helper.from_array(np.ones((2, 2, 3, 3), np.float32), "w"),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["sample", "s", "z"], ["q"], f"{SITE}/QuantizeLinear"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["dq"], f"{SITE}/DequantizeLinear"),
        helper.make_node("Conv", ["dq", "w"], ["output"], "conv", pads=pads, strides=[2, 2]),
    ]
    values = [
        helper.make_tensor_value_info("sample", TensorProto.FLOAT, ["batch", 2, 4, 4]),
        helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 2, 2, 2]),
    ]
    graph = helper.make_graph(nodes, "padded", values[:1], values[1:], inits)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_a_border_that_the_graph_pads_itself_is_cut_off() -> None:
    inner = np.random.default_rng(0).normal(size=(3, 2, 4, 4)).astype(np.float32)
    recorded = np.pad(inner, ((0, 0), (0, 0), (0, 1), (0, 1)))
    fitted = fit_recordings(padded_conv([0, 0, 1, 1]), {SITE: recorded, "other:input": inner})
    assert list(fitted) == [SITE]
    np.testing.assert_array_equal(fitted[SITE], inner)


def test_a_recording_of_the_graphs_own_shape_is_left_alone() -> None:
    inner = np.ones((3, 2, 4, 4), np.float32)
    assert fit_recordings(padded_conv([0, 0, 1, 1]), {SITE: inner})[SITE] is inner


@pytest.mark.parametrize(
    ("pads", "border"),
    [([0, 0, 1, 1], 0.5), ([1, 1, 0, 0], 0.0), ([1, 1, 1, 1], 0.0)],
    ids=["not zero", "another side", "another width"],
)
def test_anything_else_does_not_fit(pads: list[int], border: float) -> None:
    recorded = np.pad(
        np.ones((3, 2, 4, 4), np.float32), ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=border
    )
    assert fit_recordings(padded_conv(pads), {SITE: recorded}) == {}
    assert fit_recordings(padded_conv(pads), {SITE: np.ones((3, 4, 4), np.float32)}) == {}
