"""Graphs of any size: long networks, and shapes at which a walk from each node costs the square of their number."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx

from tests.support.graphs.graph_sketch import DQ, Q, Sketch

WEIGHT = np.ones((4, 4), np.float32)


def _sketch() -> Sketch:
    s = Sketch(inputs={"x": [1, 4], "scale": []})
    s.store("zero", 0, np.int8)
    s.store("one", 1.0)
    s.store("w", WEIGHT)
    return s


def network(layers: int) -> onnx.ModelProto:
    """Products behind each other, each with a pair at its activation; three nodes a layer."""
    s, last = _sketch(), "x"
    for i in range(layers):
        s.store(f"{i}.scale", 0.1 + i * 1e-6)
        s.node(Q, [last, f"{i}.scale", "zero"], f"{i}.codes", f"{i}/Q")
        s.node(DQ, [f"{i}.codes", f"{i}.scale", "zero"], f"{i}.values", f"{i}/DQ")
        last = s.node("MatMul", [f"{i}.values", "w"], f"{i}.out", f"{i}/MatMul")
    return s.model(last)


def weighted_network(layers: int) -> onnx.ModelProto:
    """The same with a quantized weight each; four nodes a layer."""
    s, last = _sketch(), "x"
    for i in range(layers):
        weight = s.weight(f"{i}.w", WEIGHT, np.full(4, 0.1), axis=1)
        last = s.node("MatMul", [s.pair(last, f"{i}"), weight], f"{i}.out", f"{i}/MatMul")
    return s.model(last)


def chain(operator: str, length: int) -> onnx.ModelProto:
    """One operator many times between a quantizer and a layer, each step read by an orphan dequantizer."""
    s = _sketch()
    s.node(Q, ["x", "one", "zero"], "codes", "a/Q")
    last = s.node(DQ, ["codes", "one", "zero"], "values", "a/DQ")
    for i in range(length // 2):
        last = s.node(operator, [last, "one"] if operator == "Mul" else [last], f"step{i}")
        s.node(DQ, [last, "one", "zero"], f"orphan{i}")
    s.node("MatMul", [last, "w"], "y", "layer")
    return s.model()


def doubled(length: int) -> onnx.ModelProto:
    """Tensors joined with themselves: ``2 ** length`` paths."""
    s = _sketch()
    last = s.pair("x", "a")
    for i in range(length):
        last = s.node("Concat", [last, last], f"joined{i}", axis=1)
    s.node("MatMul", [last, "w"], "y", "layer")
    return s.model()


def dense(length: int) -> onnx.ModelProto:
    """Each join takes one more tensor with a scale of its own, and a layer reads it."""
    s, last = _sketch(), "x"
    for i in range(length // 5):
        part = s.pair("x", f"p{i}", scale=0.1 + i * 1e-6)
        last = s.node("Concat", [last, part] if i else [part], f"joined{i}", axis=1)
        s.node("MatMul", [last, "w"], f"out{i}", f"layer{i}")
        s.node("Softmax", [part], f"soft{i}")
    return s.model(last)


def wide(length: int) -> onnx.ModelProto:
    """One join of many quantized tensors, and one tensor with many readers."""
    s = _sketch()
    parts = [s.pair("x", f"p{i}", scale=0.1 + i * 1e-6) for i in range(length // 3)]
    s.node("Concat", parts, "joined", axis=1)
    for i in range(length // 3):
        s.node("MatMul", ["joined", "w"], f"out{i}", f"layer{i}")
    return s.model("joined")


def computed_scales(length: int) -> onnx.ModelProto:
    """Scales computed from a sum of ever more inputs."""
    s, last = _sketch(), "scale"
    for i in range(length // 3):
        s.inputs[f"in{i}"] = []
        last = s.node("Add", [last, f"in{i}"], f"sum{i}")
        s.node(Q, ["x", last, "zero"], f"codes{i}", f"{i}/Q")
        s.node(DQ, [f"codes{i}", last, "zero"], f"values{i}", f"{i}/DQ")
    return s.model(last)


def backwards(length: int) -> onnx.ModelProto:
    """A chain whose last node stands first in the file."""
    s = _sketch()
    for i in reversed(range(length)):
        s.node("Identity", [f"step{i - 1}" if i else "x"], f"step{i}")
    return s.model(f"step{length - 1}")


def circle(length: int) -> onnx.ModelProto:
    """A chain that reads its own end."""
    s = _sketch()
    for i in range(length):
        s.node("Concat", [f"step{(i or length) - 1}", "x"], f"step{i}", axis=1)
    s.node("MatMul", ["step0", "w"], "y", "layer")
    return s.model()


FAMILIES: Mapping[str, Callable[[int], onnx.ModelProto]] = {
    "activations quantized": lambda nodes: network(nodes // 3),
    "activations and weights quantized": lambda nodes: weighted_network(nodes // 4),
    "chain of Identity": lambda nodes: chain("Identity", nodes),
    "chain of Relu": lambda nodes: chain("Relu", nodes),
    "chain of products with a number": lambda nodes: chain("Mul", nodes),
    "joined with itself": doubled,
    "dense joins": dense,
    "one wide join": wide,
    "computed scales": computed_scales,
    "last node first": backwards,
    "cycle": circle,
}
"""By name: from about how many nodes it has. Only the last is malformed."""
