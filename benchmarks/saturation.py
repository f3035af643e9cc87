"""What does OpenVINO make of INT8 weights whose pairs overflow 16 bits, where its kernels add in 16?

``python -m benchmarks.saturation`` (six CPU minutes) quantizes models by nearest rounding at 8 and at 7 bits, and runs
``int8.onnx`` in OpenVINO with the kernels of this processor and, in processes under ``ONEDNN_MAX_CPU_ISA``, with those
for AVX2 and for AVX-512 without VNNI. Output SQNR against the float graph, 32 states of seeded noise and timesteps,
beside ONNX Runtime's CPU engine on the same graph. Writes ``results/saturation.jsonl``, prints its rows. The two large
models have random weights: their figures say right or wrong, not quality. Run it on a processor with VNNI.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DModel

from benchmarks.cpu_speed import ATTENTION, CIFAR, FLOAT_LAYERS
from benchmarks.nearest import nearest_artifact
from benchmarks.store import RESULTS, write_rows
from gacq_deploy.backends.saturation import overflowing_layers
from gacq_deploy.calibration.planning import make_plan
from gacq_deploy.engines.open import open_engine
from gacq_deploy.export.float_graph.graph import float_graph
from gacq_deploy.export.qdq import insert_qdq
from gacq_deploy.graph.files import write_graph
from gacq_deploy.models.base import Denoiser
from gacq_deploy.models.source import describe_module, load_float_denoiser
from gacq_deploy.models.structure.graph import trace_model
from gacq_deploy.recipe.sections import ModelSection, Recipe

CAPS = ("", "AVX2", "AVX512_CORE")
"""Values of ONEDNN_MAX_CPU_ISA; the first is this processor as it is."""
ROWS = 32
SCHEDULER = {"_class_name": "DDIMScheduler", "num_train_timesteps": 1000, "prediction_type": "epsilon"}


def models() -> dict[str, Denoiser]:
    """Return the shipped models, and two large ones of random weights."""
    found = {
        "fashion16, trained": load_float_denoiser(ModelSection(source="builtin:fashion16", classes=10)),
        "digits8, trained": load_float_denoiser(ModelSection(source="builtin:digits8", classes=10)),
    }
    for name, config in (("UNet of 35.7 M, random", CIFAR), ("UNet with attention, random", ATTENTION)):
        torch.manual_seed(0)
        module = UNet2DModel(**config).eval().requires_grad_(False)
        found[name] = describe_module(module, source=name, scheduler=SCHEDULER)
    return found


def recipe(bits: int) -> Recipe:
    """Return a recipe for weights of so many bits and activations of 8; first, last and time layers stay float."""
    rules: list[dict[str, Any]] = [{"match": "*", "bits": 8}, {"match": "*", "role": "weight", "bits": bits}]
    rules += [{"match": name, "ignore": True} for name in FLOAT_LAYERS]
    document = {"schema": "gacq-deploy/recipe/1", "name": f"w{bits}a8", "quantization": {"rules": rules}}
    return Recipe.model_validate({**document, "model": {"source": "saturation"}})


def answer(folder: Path, engine: str, file: str, cap: str) -> np.ndarray:
    """Run a graph of ``folder`` on its states in a process of its own, under a cap of oneDNN's instructions."""
    environment = {k: v for k, v in os.environ.items() if k != "ONEDNN_MAX_CPU_ISA"}
    command = [sys.executable, "-m", "benchmarks.saturation", "--run", str(folder), engine, file]
    subprocess.run(command, env=environment | ({"ONEDNN_MAX_CPU_ISA": cap} if cap else {}), check=True)
    result: np.ndarray = np.load(folder / "answer.npy")
    return result


def run(folder: Path, engine: str, file: str) -> None:
    """Be that process."""
    states = dict(np.load(folder / "states.npz"))
    with open_engine(engine, folder / file, threads=1, allow_inexact=True) as opened:
        parts = [
            opened.run({k: v[i : i + 8] for k, v in states.items()})["output"] for i in range(0, ROWS, 8)
        ]
    np.save(folder / "answer.npy", np.concatenate(parts))


def sqnr(exact: np.ndarray, found: np.ndarray) -> float:
    """Return the signal to noise ratio of all rows together, in dB."""
    noise = float(np.square(found.astype(np.float64) - exact).sum())
    return round(10 * float(np.log10(np.square(exact.astype(np.float64)).sum() / noise)), 1)


def measure(denoiser: Denoiser, bits: int, folder: Path) -> dict[str, Any]:
    """Return what one model at one width gives."""
    artifact = nearest_artifact(denoiser, make_plan(recipe(bits), trace_model(denoiser)), batch=16)
    model = float_graph(denoiser)
    write_graph(model, folder / "float.onnx", external_data_mb=1024)
    write_graph(insert_qdq(model, artifact, placement="input"), folder / "int8.onnx", external_data_mb=1024)
    np.savez(
        folder / "states.npz", **{k: v.numpy() for k, v in denoiser.example_inputs(ROWS, seed=3).items()}
    )
    layers = overflowing_layers(folder / "int8.onnx")
    exact = answer(folder, "ort-cpu", "float.onnx", "")
    return {
        "layers": len(artifact.plan.modules),
        "overflowing_layers": len(layers),
        "overflowing_pairs": sum(layer.pairs for layer in layers),
        "ort_sqnr_db": sqnr(exact, answer(folder, "ort-cpu", "int8.onnx", "")),
        "openvino_sqnr_db": {
            cap or "as it is": sqnr(exact, answer(folder, "openvino", "int8.onnx", cap)) for cap in CAPS
        },
    }


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", nargs=3, metavar=("FOLDER", "ENGINE", "FILE"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS / "saturation.jsonl")
    args = parser.parse_args()
    if args.run:
        run(Path(args.run[0]), *args.run[1:])
        return
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for name, denoiser in models().items():
        for bits in (8, 7):
            with tempfile.TemporaryDirectory() as folder:
                found[f"{name}, W{bits}A8"] = row = measure(denoiser, bits, Path(folder))
            print(name, bits, json.dumps(row), flush=True)
    write_rows(args.out, found)


if __name__ == "__main__":
    main()
