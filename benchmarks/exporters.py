"""Which of torch's two ONNX exporters? Time, nodes, agreement with torch, layers found again.

Usage::

    python benchmarks/exporters.py [MODEL_FOLDER]

Writes ``results/exporters.jsonl``. Without a folder: a small random UNet2DModel. A layer counts as found when
a Conv, Gemm or MatMul node with the layer's own weight, bit for bit, tells the layer's name: by metadata, by
its node name, or by the name of its weight.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from diffusers import UNet2DModel
from onnx import NodeProto, numpy_helper
from torch import nn

from benchmarks.store import RESULTS, Rows, write_rows
from gacq_deploy.engines.open import open_engine
from gacq_deploy.export.float_graph.graph import float_graph
from gacq_deploy.graph.index import GraphIndex, module_of
from gacq_deploy.models.base import Denoiser
from gacq_deploy.models.source import describe_module

OPSET = 20
BATCHES = (1, 2, 5)
RUNS = 43
CONFIG = {
    "sample_size": 16, "in_channels": 1, "out_channels": 1, "layers_per_block": 1,
    "block_out_channels": (16, 32, 64), "norm_num_groups": 8, "attention_head_dim": 32, "num_class_embeds": 11,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip


@dataclass(frozen=True)
class Result:
    """What one exporter did."""

    seconds: float
    warnings: int
    nodes: int
    megabytes: float
    layers: int
    found_by_metadata: int
    found_by_node_name: int
    found_by_weight_name: int
    relative_error: dict[str, float]
    """Batch -> distance from torch in ONNX Runtime."""
    cpu_ms: float
    """Median CPU time of one run at batch 8 in ONNX Runtime, one thread."""


def main() -> None:
    """Measure both exporters and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", help="diffusers UNet2DModel folder")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    denoiser = _denoiser(arguments.model)
    exporters = {"dynamo": _dynamo, "legacy": _legacy}
    rows = {name: asdict(_measure(export, denoiser)) for name, export in exporters.items()}
    about = {"torch": torch.__version__, "onnx": onnx.__version__, "opset": OPSET}
    write_rows(RESULTS / "exporters.jsonl", rows, about)
    _print(rows)


def _denoiser(folder: str | None) -> Denoiser:
    torch.manual_seed(0)
    module = UNet2DModel.from_pretrained(folder) if folder else UNet2DModel(**CONFIG)
    module = module.eval().requires_grad_(False)
    return describe_module(module, source=folder or "random", scheduler={})


def _dynamo(denoiser: Denoiser) -> onnx.ModelProto:
    return float_graph(denoiser, opset=OPSET)


def _legacy(denoiser: Denoiser) -> onnx.ModelProto:
    inputs = denoiser.example_inputs(2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "legacy.onnx"
        torch.onnx.export(
            denoiser.call_module(),
            tuple(inputs.values()),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=["output"],
            dynamic_axes={name: {0: "batch"} for name in (*inputs, "output")},
        )
        return onnx.load(path)


def _measure(export: Callable[[Denoiser], onnx.ModelProto], denoiser: Denoiser) -> Result:
    started = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = export(denoiser)
    seconds = time.perf_counter() - started
    layers = {n: m for n, m in denoiser.module.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    return Result(
        seconds=round(seconds, 1),
        warnings=len(caught),
        nodes=len(model.graph.node),
        megabytes=round(model.ByteSize() / 1e6, 3),
        layers=len(layers),
        found_by_metadata=_found(model, layers, module_of),
        found_by_node_name=_found(model, layers, _by_node_name),
        found_by_weight_name=_found(model, layers, _by_weight_name),
        relative_error={f"batch {batch}": _error(model, denoiser, batch) for batch in BATCHES},
        cpu_ms=_cpu_ms(model, denoiser),
    )


def _found(
    model: onnx.ModelProto, layers: dict[str, nn.Module], name_of: Callable[[NodeProto], str | None]
) -> int:
    index = GraphIndex(model)
    found = set()
    for node in index.of_type("Conv", "Gemm", "MatMul"):
        name = name_of(node)
        stored = index.initializers.get(node.input[1])
        if name not in layers or stored is None:
            continue
        weight = layers[name].get_parameter("weight").numpy()
        array = numpy_helper.to_array(stored)
        if any(np.array_equal(array, w) for w in ([weight, weight.T] if weight.ndim == 2 else [weight])):
            found.add(name)
    return len(found)


def _by_node_name(node: NodeProto) -> str | None:
    """Read the legacy exporter's habit: ``/denoiser/mid_block/resnets.0/conv1/Conv``."""
    parts = node.name.split("/")[2:-1]
    return ".".join(parts) if parts else None


def _by_weight_name(node: NodeProto) -> str | None:
    match = re.fullmatch(r"denoiser\.(.+)\.weight", node.input[1])
    return match.group(1) if match else None


def _error(model: onnx.ModelProto, denoiser: Denoiser, batch: int) -> float:
    inputs = denoiser.example_inputs(batch, seed=batch)
    conditioning = {k: v for k, v in inputs.items() if k not in ("sample", "timestep")}
    expected = denoiser(inputs["sample"], inputs["timestep"], conditioning).numpy()
    with open_engine("ort-cpu", model.SerializeToString(), threads=1) as engine:
        output = engine.run({k: v.numpy() for k, v in inputs.items()})["output"]
    return float(f"{np.linalg.norm(output - expected) / np.linalg.norm(expected):.2e}")


def _cpu_ms(model: onnx.ModelProto, denoiser: Denoiser) -> float:
    feeds = {k: v.numpy() for k, v in denoiser.example_inputs(8).items()}
    times = []
    with open_engine("ort-cpu", model.SerializeToString(), threads=1) as engine:
        for _ in range(RUNS):
            started = time.process_time()
            engine.run(feeds)
            times.append(time.process_time() - started)
    return round(1e3 * float(np.median(times[3:])), 2)


def _print(rows: Rows) -> None:
    print(f"{'exporter':22}" + "".join(f"{name:>74}" for name in rows))
    for key in rows["dynamo"]:
        print(f"{key:22}" + "".join(f"{row[key]!s:>74}" for row in rows.values()))


if __name__ == "__main__":
    main()
