"""One row, from recipe to numbers, in a process of its own: so that peak memory is that row's."""

from __future__ import annotations

import importlib.metadata
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.quality.candidates import CANONICAL, CPU, Candidate, Workshop, calibrated
from benchmarks.quality.exam import Exam, Measure, cached_float_graph, prepare
from benchmarks.quality.judge import judge, judge_floor
from benchmarks.quality.rows import FOREIGN, Row
from gacq_deploy.calibration.planning import make_plan
from gacq_deploy.calibration.resume import ALGORITHM
from gacq_deploy.errors import RecipeError
from gacq_deploy.models.folders import builtin_directory
from gacq_deploy.models.source import load_float_denoiser
from gacq_deploy.models.structure.graph import trace_model
from gacq_deploy.recipe.plan import resolve_plan
from gacq_deploy.samples.calibration_set import load_samples
from gacq_deploy.storage.digests import digest_file, digest_json

MEASURING = 1
"""Raised when a metric changes: every row is then measured again."""


def row_digest(row: Row, shop: Workshop, measure: Measure) -> str:
    """Return the digest of what a row's numbers depend on, without loading the model."""
    folder = builtin_directory(row.model)
    packages = ["torch", "onnxruntime", *(["diffusers"] if not row.is_foreign else [])]
    return digest_json(
        {
            "row": row.document(),
            "recipe": shop.recipe(row).calibration_digest,
            "model": {p.name: digest_file(p) for p in sorted(folder.rglob("*.safetensors"))},
            "packages": {name: importlib.metadata.version(name) for name in packages},
            "algorithm": None if row.is_foreign else ALGORITHM,
            "measure": asdict(measure),
            "measuring": MEASURING,
        }
    )


def measure_row(row: Row, shop: Workshop, measure: Measure, modelopt: Path) -> dict[str, Any]:
    """Make the row's graphs and judge them."""
    torch.set_num_threads(1)
    base = {"row": row.document(), "measure": asdict(measure), "digest": row_digest(row, shop, measure)}
    if row.setting == "w4-weight-only":
        return {**base, **_refusal(row, shop)}
    recipe = shop.recipe(row)
    denoiser = load_float_denoiser(recipe.model)
    graph = cached_float_graph(denoiser, shop.cache)
    if row.reconstruction == "fp":
        exam = prepare(row.model, denoiser.record, graph, measure, shop.cache)
        return {**base, **_float_row(exam, graph, denoiser.record)}
    candidate = _candidate(row, shop, modelopt)
    exam = prepare(row.model, denoiser.record, graph, measure, shop.cache)
    wanted = [CANONICAL] + ([CPU] if measure.cpu_graph and CPU in candidate.graphs else [])
    return {
        **base,
        "cost": dict(candidate.cost),
        "facts": dict(candidate.facts),
        "graphs": {name: judge(candidate.graphs[name], denoiser.record, exam) for name in wanted},
    }


def _float_row(exam: Exam, graph: Any, record: Any) -> dict[str, Any]:
    return {"graphs": {CANONICAL: judge(graph, record, exam)}, "floor": judge_floor(exam)}


def _candidate(row: Row, shop: Workshop, modelopt: Path) -> Candidate:
    recipe = shop.recipe(row)
    denoiser = load_float_denoiser(recipe.model)
    graph = cached_float_graph(denoiser, shop.cache)
    if row.reconstruction not in FOREIGN:
        return calibrated(row, shop, denoiser, graph)
    plan = make_plan(recipe, trace_model(denoiser))
    directory, sha256 = shop.samples(recipe, denoiser)
    tool, _, method = row.reconstruction.partition("-")
    if tool == "ort":
        from benchmarks.quality import ort_rows

        samples = load_samples(directory.samples_path, sha256=sha256).training
        return ort_rows.quantized(row.reconstruction, graph, plan, samples)
    from benchmarks.quality import modelopt_rows

    return modelopt_rows.quantized(method, modelopt, graph, denoiser, plan, directory.samples_path)


def _refusal(row: Row, shop: Workshop) -> dict[str, Any]:
    """Ask for 4-bit weights with float inputs and report what stands in the way, measured by asking."""
    recipe = shop.recipe(row)
    rules = [r for r in recipe.document()["quantization"]["rules"] if r["ignore"]]
    asked = [{"match": "*", "ignore": True}, {"match": "*", "role": "weight", "bits": 4}, *rules]
    changed = recipe.model_copy(
        update={"quantization": type(recipe.quantization).model_validate({"rules": asked})}
    )
    graph = trace_model(load_float_denoiser(recipe.model))
    try:
        resolve_plan(changed, graph.sites, dict(graph.ties))
    except RecipeError as error:
        return {"status": "not deployable, not measured", "reason": str(error)}
    return {"status": "deployable, not measured", "reason": "the plan accepts it; measure it as another row"}
