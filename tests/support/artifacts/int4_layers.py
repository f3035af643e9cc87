"""Two linear layers on one tensor, one of them with INT4 weights in blocks, and an artifact for them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx

from gacq_deploy.artifact.artifact import CalibrationArtifact
from gacq_deploy.spec import Array, PlannedSite, QuantPlan, Site, TensorParams, TensorSpec
from tests.support.graphs.layer_graphs import LayerGraph, layer_artifact, random_array

OUT, IN, BLOCK = 6, 32, 16
SPEC = TensorSpec(bits=4, axis=0, narrow=True, block=BLOCK)
WEIGHT = Site("b", "weight")


def two_linears(op: str, opset: int = 21) -> onnx.ModelProto:
    """Two linear layers that read one tensor: `a` becomes INT8, `b` INT4."""
    graph = LayerGraph(opset)
    one, two = random_array(OUT, IN, seed=1), random_array(OUT, IN, seed=2)
    graph.linear("a", "x", "ya", one)
    if op == "MatMul":
        graph.linear("b", "x", "yb", two)
    else:
        graph.weights["b"] = graph.stored["b.weight"] = two
        graph.stored["b.bias"] = random_array(OUT, seed=3)
        graph.add("Gemm", ["x", "b.weight", "b.bias"], "yb", "b", transB=1)
    graph.add("Add", ["ya", "yb"], "y")
    return graph.model(["batch", IN], "y", ["batch", OUT])


def int4_artifact(
    codes: Array | None = None, scale: Array | None = None, *, alone: bool = False
) -> CalibrationArtifact:
    """Return an artifact of both, or of `b` ``alone``; codes [6, 32] and scales [6, 2] of `b` are random by default."""
    rng = np.random.default_rng(4)
    codes = rng.integers(-7, 8, (OUT, IN)).astype(np.int8) if codes is None else codes
    scale = rng.uniform(0.1, 0.2, (OUT, IN // BLOCK)).astype(np.float16) if scale is None else scale
    weights = {"a": random_array(OUT, IN, seed=1), "b": random_array(OUT, IN, seed=2)}
    made = layer_artifact({"b": weights["b"]} if alone else weights, {} if alone else {"a:input": 0.05})
    entries = [e for e in made.plan if e.site != WEIGHT] + [PlannedSite(WEIGHT, SPEC, str(WEIGHT))]
    params = {**made.params, WEIGHT: TensorParams(scale.astype(np.float32), codes)}
    return replace(made, plan=QuantPlan(tuple(entries)), params=params)
