"""What does NVIDIA ModelOpt make of the model? Its scales, in our graph, checked against its own fake quantization.

ModelOpt runs in an environment of its own (``benchmarks/requirements-modelopt.txt``). Its ranges, and for SmoothQuant
its changed weights and input scales, become codes and scales of a Q/DQ graph by the formula ModelOpt uses: scale =
amax / 127, nearest rounding. ``agreement_db`` is the SQNR of that graph against ModelOpt's own fake-quantized outputs
on the same inputs: far above the quantization noise if the graph is what ModelOpt meant.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from benchmarks.quality.candidates import CANONICAL, Candidate
from gacq_deploy.artifact.artifact import CalibrationArtifact
from gacq_deploy.backends.batches import run_in_batches
from gacq_deploy.engines.open import open_engine
from gacq_deploy.export.qdq import insert_qdq
from gacq_deploy.graph.index import module_of, replace_nodes, set_module
from gacq_deploy.metrics.arrays import sqnr_db
from gacq_deploy.models.base import Denoiser
from gacq_deploy.models.folders import builtin_directory
from gacq_deploy.spec import PlannedSite, QuantPlan, Site, TensorParams
from gacq_deploy.storage.digests import digest_array
from gacq_deploy.storage.files import load_arrays

WORKER = Path(__file__).with_name("modelopt_worker.py")
_BATCH = 16
_HINT = (
    "python -m venv runs/modelopt/venv && "
    "runs/modelopt/venv/bin/pip install -r benchmarks/requirements-modelopt.txt"
)


def quantized(
    method: str,
    python: Path,
    graph: onnx.ModelProto,
    denoiser: Denoiser,
    plan: QuantPlan,
    samples: Path,
) -> Candidate:
    """Run ModelOpt's ``method`` under ``python`` and build the graph from what it found.

    Raises:
        FileNotFoundError: there is no such environment; the message says how to make it.
        RuntimeError: ModelOpt failed, with its last line.
    """
    found, facts = _run(method, python, denoiser, plan, samples)
    floats = {
        name: denoiser.module.get_submodule(name).get_parameter("weight").numpy() for name in plan.modules
    }
    smoothed = _with_input_scales(graph, found)
    model = insert_qdq(smoothed, _artifact(denoiser, plan, floats, found), placement="input")
    inputs = {"sample": found["check.latents"], "timestep": found["check.timesteps"]}
    inputs |= {k.removeprefix("check.cond."): v for k, v in found.items() if k.startswith("check.cond.")}
    with open_engine("ort-cpu", model.SerializeToString(), threads=1) as engine:
        answers = run_in_batches(engine, inputs, _BATCH)
    cost = {k: facts.pop(k) for k in ("cpu_s", "peak_mb")}
    facts["agreement_db"] = sqnr_db(found["check.output"], answers)
    facts["smoothed"] = sum(k.endswith(":pre_quant_scale") for k in found)
    return Candidate({CANONICAL: model}, cost, facts)


def _run(
    method: str, python: Path, denoiser: Denoiser, plan: QuantPlan, samples: Path
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    if not python.is_file():
        raise FileNotFoundError(f"{python} is missing. Make ModelOpt's environment: {_HINT}")
    bits = {entry.spec.bits for entry in plan.of_role("weight")}
    assert len(bits) == 1, f"one preset has one weight width, the plan has {sorted(bits)}"
    task = {
        "model": str(builtin_directory(denoiser.record.source.removeprefix("builtin:"))),
        "samples": str(samples),
        "modules": list(plan.modules),
        "weight_bits": bits.pop(),
        "method": method,
        "batch": _BATCH,
    }
    with tempfile.TemporaryDirectory(prefix="modelopt-") as folder:
        asked, out = Path(folder) / "task.json", Path(folder) / "found.safetensors"
        asked.write_text(json.dumps(task))
        # -P: the worker's folder holds this package's modules, which must not stand in for the tool's
        command = [str(python), "-P", str(WORKER), str(asked), str(out)]
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode != 0:
            raise RuntimeError(f"ModelOpt failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
        tensors = load_arrays(out, what="ModelOpt's answer", hint=_HINT)
        return tensors, json.loads(out.with_suffix(".json").read_text())


def _artifact(
    denoiser: Denoiser, plan: QuantPlan, floats: dict[str, NDArray[Any]], found: dict[str, NDArray[Any]]
) -> CalibrationArtifact:
    entries = tuple(e for e in plan if e.site.role != "output")
    return CalibrationArtifact(
        model=denoiser.record,
        plan=QuantPlan(entries),
        params={e.site: _params(e, found) for e in entries},
        weight_digests={str(Site(name, "weight")): digest_array(w) for name, w in floats.items()},
        recipe={},
        samples_sha256="",
        history=(),
        probe=None,
    )


def _params(entry: PlannedSite, found: dict[str, NDArray[Any]]) -> TensorParams:
    name = entry.site.module
    if entry.site.role == "input":
        return TensorParams(np.asarray(found[f"{name}:input.amax"] / entry.spec.qmax, np.float32))
    scale = (found[f"{name}:weight.amax"] / entry.spec.qmax).astype(np.float32)
    weight = found[f"{name}:weight"]
    codes = np.rint(weight / scale.reshape(-1, *[1] * (weight.ndim - 1)))
    return TensorParams(scale, codes.clip(entry.spec.qmin, entry.spec.qmax).astype(np.int8))


def _with_input_scales(graph: onnx.ModelProto, found: dict[str, NDArray[Any]]) -> onnx.ModelProto:
    """Return the float graph with a Mul before every smoothed layer, as ModelOpt scales inputs before quantizing."""
    result = onnx.ModelProto()
    result.CopyFrom(graph)
    nodes = []
    for node in result.graph.node:
        name = module_of(node)
        scale = found.get(f"{name}:pre_quant_scale")
        if scale is not None and node.op_type in ("MatMul", "Gemm"):
            constant, scaled = f"{name}.pre_quant_scale", f"{name}.smoothed"
            result.graph.initializer.append(numpy_helper.from_array(scale.astype(np.float32), constant))
            mul = helper.make_node("Mul", [node.input[0], constant], [scaled], name=f"{name}/Mul")
            nodes.append(set_module(mul, str(name)))
            node.input[0] = scaled
        nodes.append(node)
    replace_nodes(result, nodes)
    return result
