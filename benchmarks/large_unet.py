"""Does a model of Stable Diffusion 1.5's size go through, and what does it take? Time and memory of every step.

Usage::

    python -m benchmarks.large_unet [--work FOLDER] [--keep]

Writes ``results/large_unet.jsonl``. The model has SD 1.5's configuration (859.5 M parameters) and random weights;
nothing is downloaded. Every step runs in a process of its own, one thread:

quantize    make the model; plan by recipe sd15-w8a8; ranges of one row of 16x16 latents; nearest rounding; save
export      make the model; float graph (weights in a file beside it); insert Q/DQ; write both graphs
lint        read the Q/DQ graph and lint it for TensorRT
compile     TensorRT-RTX, batch 2, 64x64 latents; INT8 coverage of the planned layers

The exported graph has a dynamic batch and a fixed resolution.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from benchmarks.nearest import nearest_artifact
from benchmarks.store import RESULTS, write_rows
from gacq_deploy.artifact.artifact import load_artifact
from gacq_deploy.bench.stage import describe_host
from gacq_deploy.build_trt.compiler import compile_graph
from gacq_deploy.build_trt.coverage import measure_coverage
from gacq_deploy.build_trt.options import CompileOptions
from gacq_deploy.build_trt.profiles import ShapeRequest, derive_profiles, input_dims
from gacq_deploy.calibration.planning import make_plan
from gacq_deploy.export.float_graph.graph import float_graph
from gacq_deploy.export.qdq import expected_sites, insert_qdq
from gacq_deploy.graph.files import read_graph, write_graph
from gacq_deploy.lint.lint import count_findings, lint_graph
from gacq_deploy.models.base import Denoiser
from gacq_deploy.models.source import describe_module
from gacq_deploy.models.structure.graph import trace_model
from gacq_deploy.recipe.load import load_recipe
from gacq_deploy.spec import QuantPlan

OUT = RESULTS / "large_unet.jsonl"
CONFIG: dict[str, Any] = {
    "sample_size": 64, "in_channels": 4, "out_channels": 4, "layers_per_block": 2, "cross_attention_dim": 768,
    "block_out_channels": (320, 640, 1280, 1280), "attention_head_dim": 8, "norm_num_groups": 32,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip
SCHEDULER = {"_class_name": "DDIMScheduler", "num_train_timesteps": 1000, "beta_schedule": "scaled_linear"}
SMALL = (4, 16, 16)
"""Latents that ranges are taken from: 1/16 of the work of 64x64, the same layers and ties."""
LIMIT_S, LIMIT_MB = 600, 16_000
RECIPE = "sd15-w8a8"
BATCH = ("2",)
Facts = dict[str, Any]


def main() -> None:
    """Run every step and print what it took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, help="Folder for the files (6 GB); default: a temporary one.")
    parser.add_argument("--keep", action="store_true", help="Keep the files.")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        _child(arguments.step, arguments.work)
        return
    work = arguments.work or Path(tempfile.mkdtemp(prefix="large-unet-"))
    work.mkdir(parents=True, exist_ok=True)
    host = describe_host()
    try:
        steps = {name: _run(name, work) for name in STEPS}
    finally:
        if not arguments.keep:
            shutil.rmtree(work)
    seconds, peak = sum(s["wall_s"] for s in steps.values()), max(s["peak_mb"] for s in steps.values())
    about = {
        "schema": "gacq-deploy/benchmark/large-unet/1",
        "host": host.model_dump(mode="json"),
        "recipe": RECIPE,
        "total": {"wall_s": round(seconds, 1), "peak_mb": peak},
        "limits": {"wall_s": LIMIT_S, "peak_mb": LIMIT_MB, "held": seconds < LIMIT_S and peak < LIMIT_MB},
    }
    write_rows(OUT, steps, about)
    sys.stdout.write(f"{json.dumps(about['total'])} {json.dumps(about['limits'])}\n{OUT}\n")


def _run(step: str, work: Path) -> Facts:
    command = [sys.executable, "-m", "benchmarks.large_unet", "--step", step, "--work", str(work)]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    facts: Facts = json.loads(result.stdout.splitlines()[-1])
    sys.stdout.write(f"{step}: {json.dumps(facts)}\n")
    sys.stdout.flush()
    return facts


def _child(step: str, work: Path) -> None:
    torch.set_num_threads(1)
    began, cpu = time.monotonic(), time.process_time()
    facts = STEPS[step](work)
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = time.process_time() - cpu + children.ru_utime + children.ru_stime
    # a builder's memory is beside its parent's, which only waits
    peak = own + children.ru_maxrss // 1024
    timing = {"wall_s": round(time.monotonic() - began, 1), "cpu_s": round(spent, 1), "peak_mb": peak}
    sys.stdout.write(json.dumps(timing | facts) + "\n")


def _denoiser() -> Denoiser:
    torch.manual_seed(0)
    module = UNet2DConditionModel(**CONFIG).eval().requires_grad_(False)
    return describe_module(module, source="random", scheduler=SCHEDULER)


def _quantize(work: Path) -> Facts:
    denoiser = _denoiser()
    small = replace(denoiser, record=denoiser.record.model_copy(update={"sample_shape": SMALL}))
    plan = make_plan(load_recipe(RECIPE), trace_model(small))
    # the search for the best clipping is no part of this question
    plan = QuantPlan(tuple(replace(entry, range_method="minmax") for entry in plan))
    nearest_artifact(small, plan, batch=1, record=denoiser.record).save(work / "artifact")
    parameters = sum(p.numel() for p in denoiser.module.parameters())
    return {"parameters": parameters, "planned_layers": len(plan.modules)}


def _export(work: Path) -> Facts:
    settings = load_recipe(RECIPE).export
    model = float_graph(_denoiser(), opset=settings.opset)
    artifact = load_artifact(work / "artifact")
    files = write_graph(model, work / "float.onnx", external_data_mb=settings.external_data_mb)
    result = insert_qdq(model, artifact, placement="input")
    files += write_graph(result, work / "int8.onnx", external_data_mb=settings.external_data_mb)
    sites = len(expected_sites(artifact.plan, "input"))
    return {"files_mb": {f.name: f.stat().st_size // 2**20 for f in files}, "quantized_sites": sites}


def _lint(work: Path) -> Facts:
    return {"findings": count_findings(lint_graph(read_graph(work / "int8.onnx"), target="tensorrt"))}


def _compile(work: Path) -> Facts:
    model = read_graph(work / "int8.onnx")
    options = CompileOptions(
        backend="tensorrt-rtx", profiles=derive_profiles(input_dims(model), ShapeRequest(BATCH))
    )
    folder = work / "engine"
    folder.mkdir(exist_ok=True)
    compiled = compile_graph(work / "int8.onnx", options, folder=folder)
    coverage = measure_coverage(model, compiled.layers, load_artifact(work / "artifact").plan.modules)
    return {
        "library": f"{compiled.library}-{compiled.version}",
        "plan_mb": compiled.engine.stat().st_size // 2**20,
        "builder_peak_mb": compiled.peak_mb,
        "int8_layers": coverage.int8,
        "planned_layers": coverage.planned,
    }


STEPS: dict[str, Callable[[Path], Facts]] = {
    "quantize": _quantize,
    "export": _export,
    "lint": _lint,
    "compile": _compile,
}


if __name__ == "__main__":
    main()
