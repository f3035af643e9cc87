"""What do INT4 weights in blocks buy, and what do they cost? Sizes of a DiT, and the error on a trained model.

Usage::

    python -m benchmarks.int4_weights [--work FOLDER]

Writes ``results/int4_weights.jsonl``. Two questions, no GPU:

sizes       DiT-S/2 (39.8 M random weights): float graph, `dit-w8a8` and `dit-w4a16` by nearest rounding; file sizes,
            and the plan that TensorRT-RTX makes of each in float16 (the float graph's plan is the float16 twin)
quality     the attention of the shipped fashion16 with INT4 weights in blocks of 16, all else float, calibrated with
            preset `quick`: output SQNR by timestep after nearest rounding, block reconstruction and polish
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from diffusers import DiTTransformer2DModel

from benchmarks.nearest import nearest_artifact
from benchmarks.store import RESULTS, write_rows
from gacq_deploy.build_trt.compiler import compile_graph
from gacq_deploy.build_trt.coverage import measure_coverage
from gacq_deploy.build_trt.float16.convert import to_half
from gacq_deploy.build_trt.options import CompileOptions
from gacq_deploy.build_trt.profiles import ShapeRequest, derive_profiles, input_dims
from gacq_deploy.calibration.planning import make_plan
from gacq_deploy.calibration.stage import calibrate
from gacq_deploy.export.float_graph.graph import float_graph
from gacq_deploy.export.qdq import BLOCK_OPSET, insert_qdq
from gacq_deploy.graph.files import write_graph
from gacq_deploy.inspection.artifact import inspect_artifact
from gacq_deploy.models.base import Denoiser
from gacq_deploy.models.source import describe_module
from gacq_deploy.models.structure.graph import trace_model
from gacq_deploy.recipe.load import load_recipe
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.spec import QuantPlan

DIT_S: dict[str, Any] = {
    "sample_size": 32, "in_channels": 4, "out_channels": 8, "num_attention_heads": 6, "attention_head_dim": 64,
    "num_layers": 12, "patch_size": 2, "num_embeds_ada_norm": 1000,
}  # fmt: skip
ATTENTION = (
    "quantization.rules=[{match: '*', ignore: true}, {match: '*.to_*', layer: linear, bits: 4, block: 16}]",
    "calibration.threads=1",
)


def make_dit() -> Denoiser:
    """Return a DiT-S/2 of seeded random weights."""
    torch.manual_seed(0)
    module = DiTTransformer2DModel(**DIT_S).eval().requires_grad_(False)
    return describe_module(module, source="random", scheduler={"num_train_timesteps": 1000})


def compiled(name: str, model: onnx.ModelProto, plan: QuantPlan | None, folder: Path) -> dict[str, Any]:
    """Write a graph, compile its float16 form and say what became of both."""
    files = write_graph(model, folder / f"{name}.onnx", external_data_mb=1024)
    half = to_half(model).model
    path = write_graph(half, folder / f"{name}.half.onnx", external_data_mb=1024)[-1]
    scratch = folder / name
    scratch.mkdir()
    profiles = derive_profiles(input_dims(half), ShapeRequest(("4",)))
    built = compile_graph(path, CompileOptions(backend="tensorrt-rtx", profiles=profiles), folder=scratch)
    coverage = measure_coverage(half, built.layers, None if plan is None else plan.modules)
    return {
        "graph_bytes": sum(f.stat().st_size for f in files),
        "half_graph_bytes": path.stat().st_size,
        "plan_bytes": built.engine.stat().st_size,
        "library": f"{built.library}-{built.version}",
        "coverage": coverage.document(),
    }


def sizes(folder: Path) -> dict[str, Any]:
    """Return files and plans of one model by recipe."""
    denoiser = make_dit()
    graph, exported = trace_model(denoiser), float_graph(denoiser, opset=BLOCK_OPSET)
    found = {"float": compiled("float", exported, None, folder)}
    for recipe in ("dit-w8a8", "dit-w4a16"):
        plan = make_plan(load_recipe(recipe), graph)
        model = insert_qdq(exported, nearest_artifact(denoiser, plan), placement="input")
        found[recipe] = compiled(recipe, model, plan, folder)
    parameters = sum(p.numel() for p in denoiser.module.parameters())
    return {"model": "DiT-S/2, random weights", "parameters": parameters, "by_recipe": found}


def quality(folder: Path) -> dict[str, Any]:
    """Return output SQNR by stage, in five timestep buckets from noisy to clean."""
    run = RunDirectory(folder / "fashion16")
    artifact = calibrate(load_recipe("fashion-w8a8", ATTENTION, preset="quick"), run)
    levels = inspect_artifact(run.root).error_sqnr_db
    buckets = {
        stage: [float(np.mean(part)) for part in np.array_split(np.array(v), 5)]
        for stage, v in levels.items()
    }
    return {"model": "fashion16", "layers": len(artifact.plan.weight_only), "block": 16, "sqnr_db": buckets}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, help="keep what is made here")
    work = parser.parse_args().work
    with tempfile.TemporaryDirectory(prefix="int4-") as scratch:
        folder = work or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        rows = {"sizes": sizes(folder), "quality": quality(folder)}
    about = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": "python -m benchmarks.int4_weights",
        "platform": f"{platform.system()} {platform.machine()}, no GPU needed",
    }
    write_rows(RESULTS / "int4_weights.jsonl", rows, about)
    print(rows)


if __name__ == "__main__":
    main()
