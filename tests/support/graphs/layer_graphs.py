"""Handmade float graphs of named layers, and artifacts for them, without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from gacq_deploy.artifact.artifact import CalibrationArtifact
from gacq_deploy.artifact.records import ModelRecord
from gacq_deploy.graph.index import MODULE_KEY
from gacq_deploy.spec import Array, PlannedSite, QuantPlan, Role, Site, TensorParams, TensorSpec
from gacq_deploy.storage.digests import digest_array

Shape = Sequence[int | str]


@dataclass
class LayerGraph:
    """Collects nodes and weights; ``weights`` maps module -> its weight [out, in, ...] as torch stores it."""

    opset: int = 20
    nodes: list[NodeProto] = field(default_factory=list)
    stored: dict[str, Array] = field(default_factory=dict)
    weights: dict[str, Array] = field(default_factory=dict)

    def add(
        self,
        op_type: str,
        inputs: Sequence[str],
        output: str,
        module: str | None = None,
        **attributes: object,
    ) -> str:
        """Append a node that came from ``module``; return its output."""
        node = helper.make_node(op_type, inputs, [output], f"node_{output}", **attributes)
        if module:
            helper.set_metadata_props(node, {MODULE_KEY: module})
        self.nodes.append(node)
        return output

    def conv(self, module: str, data: str, output: str, weight: Array, bias: Array | None = None) -> str:
        """Append a convolution that keeps the size."""
        self.weights[module] = self.stored[f"{module}.weight"] = weight
        inputs = [data, f"{module}.weight"]
        if bias is not None:
            self.stored[f"{module}.bias"] = bias
            inputs.append(f"{module}.bias")
        pad = weight.shape[-1] // 2
        return self.add("Conv", inputs, output, module, pads=[pad] * 4)

    def linear(self, module: str, data: str, output: str, weight: Array) -> str:
        """Append a linear layer as the exporter writes it: a product with the transposed weight."""
        self.weights[module] = weight
        self.stored[f"{module}.t"] = np.ascontiguousarray(weight.T)
        return self.add("MatMul", [data, f"{module}.t"], output, module)

    def model(self, shape: Shape, output: str, output_shape: Shape) -> onnx.ModelProto:
        """Return the model with input ``x`` and the named output."""
        graph = helper.make_graph(
            self.nodes,
            "layers",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, output_shape)],
            [numpy_helper.from_array(value, name) for name, value in self.stored.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10)


def random_array(*shape: int, seed: int = 0, scale: float = 1.0) -> Array:
    """Return seeded float32 noise."""
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def layer_artifact(
    weights: Mapping[str, Array],
    scales: Mapping[str, float],
    *,
    spec: TensorSpec | None = None,
    codes: Mapping[str, Array] | None = None,
) -> CalibrationArtifact:
    """Return an artifact by nearest rounding: ``weights`` by module, activation ``scales`` by site."""
    entries: list[PlannedSite] = []
    params: dict[Site, TensorParams] = {}
    for module, weight in weights.items():
        axes = tuple(range(1, weight.ndim))
        scale = (np.abs(weight).max(axis=axes) / np.float32(127)).astype(np.float32)
        shaped = scale.reshape(-1, *([1] * len(axes)))
        own = (codes or {}).get(module, np.clip(np.rint(weight / shaped), -127, 127).astype(np.int8))
        params[Site(module, "weight")] = TensorParams(scale, own)
        entries.append(
            PlannedSite(Site(module, "weight"), TensorSpec(bits=8, axis=0, narrow=True), f"{module}:weight")
        )
        roles: tuple[Role, ...] = ("input", "output")
        for role in roles:
            site = Site(module, role)
            if str(site) in scales:
                params[site] = TensorParams(np.float32(scales[str(site)]).reshape(()))
                entries.append(PlannedSite(site, spec or TensorSpec(bits=8), str(site)))
    model = ModelRecord(
        source="layers", revision=None, family="none", weights_sha256="0" * 64, prediction_type="epsilon",
        scheduler={}, sample_shape=(1, 1, 1), conditioning={},
    )  # fmt: skip
    return CalibrationArtifact(
        model=model,
        plan=QuantPlan(tuple(entries)),
        params=params,
        weight_digests={f"{m}:weight": digest_array(w) for m, w in weights.items()},
        recipe={},
        samples_sha256="0" * 64,
        history=(),
        probe=None,
    )


def fake_quantize(x: Array, scale: Array | float, low: int = -128, high: int = 127) -> Array:
    """Return ``x`` quantized and dequantized in float32: divide, round half to even, clamp, multiply."""
    step = np.asarray(scale, np.float32)
    return (np.clip(np.rint(x / step), low, high) * step).astype(np.float32)
