"""How good is a graph? Every number of a row, measured in ONNX Runtime against the float model."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from benchmarks.quality import classes, features
from benchmarks.quality import metrics as m
from benchmarks.quality.exam import Exam, draw
from benchmarks.quality.features import Taps
from gacq_deploy.artifact.records import ModelRecord
from gacq_deploy.backends.batches import run_in_batches
from gacq_deploy.engines.open import open_engine
from gacq_deploy.lint.lint import lint_graph
from gacq_deploy.metrics.arrays import by_bucket, sqnr_db
from gacq_deploy.metrics.images import psnr, ssim
from gacq_deploy.samples.calibration_set import timestep_buckets

BUCKETS = 5


def judge(graph: onnx.ModelProto, record: ModelRecord, exam: Exam) -> dict[str, Any]:
    """Return steps, paired, set and class metrics of one graph, and what TensorRT would say of it."""
    images = draw(graph, record, exam.measure)
    taps = features.extract(exam.network, images)
    similarity = psnr(exam.images, images)
    return {
        **_steps(graph, exam),
        "psnr_db": float(similarity.mean()),
        "psnr_db_median": float(np.median(similarity)),
        "ssim": float(ssim(exam.images, images).mean()),
        "class_accuracy": classes.accuracy(exam.classifier, images, exam.labels),
        **_sets(taps, exam),
        "tensorrt_lint": _lint(graph),
    }


def judge_floor(exam: Exam) -> dict[str, Any]:
    """Return what real test images score against real training images: the least any model can reach."""
    manifold = _manifold(exam.floor, exam)
    return {
        "images": len(exam.floor.head),
        "real_images": len(exam.real.head),
        "kid_lite0": m.kernel_distance(exam.floor.head, exam.real.head),
        "fd_lite0": m.frechet_distance(exam.floor.block, exam.real.block),
        "class_accuracy": exam.real_accuracy,
        "precision": manifold.precision,
        "recall": manifold.recall,
        "taps": {"kid_lite0": "c1280", "fd_lite0": "c320", "paired and manifold": "c1280"},
        "resize": features.RESIZE,
        "extractor": features.NAME,
    }


def _steps(graph: onnx.ModelProto, exam: Exam) -> dict[str, Any]:
    """Teacher-forced: the graph answers every state of the float trajectories."""
    truth = exam.truth
    steps, rows = truth.states.shape[:2]
    inputs = {
        "sample": truth.states.reshape(steps * rows, *truth.states.shape[2:]),
        "timestep": np.repeat(truth.timesteps, rows),
        **{k: np.tile(v, steps) for k, v in exam.held.conditions.positive.items()},
    }
    with open_engine("ort-cpu", graph.SerializeToString(), threads=1) as engine:
        answers = run_in_batches(engine, inputs, exam.held.batch)
    exact = truth.outputs.reshape(answers.shape)
    buckets = timestep_buckets(inputs["timestep"], BUCKETS)
    by_step = [
        sqnr_db(exact[inputs["timestep"] == t], answers[inputs["timestep"] == t]) for t in truth.timesteps
    ]
    return {
        "sqnr_db": sqnr_db(exact, answers),
        "sqnr_db_by_bucket": by_bucket(sqnr_db, exact, answers, buckets),
        "sqnr_db_by_step": by_step,
    }


def _sets(taps: Taps, exam: Exam) -> dict[str, float]:
    manifold = _manifold(taps, exam)
    base = m.spread_within_classes(exam.taps.head, exam.labels)
    return {
        "paired_feature_distance": m.paired_distance(exam.taps.head, taps.head) / base,
        "diversity": m.spread_within_classes(taps.head, exam.labels) / base,
        "kid_lite0": m.kernel_distance(taps.head, exam.real.head),
        "fd_lite0": m.frechet_distance(taps.block, exam.real.block),
        "precision": manifold.precision,
        "recall": manifold.recall,
    }


def _manifold(taps: Taps, exam: Exam) -> m.Manifold:
    count = min(len(taps.head), len(exam.real.head))
    return m.precision_recall(exam.real.head[:count], taps.head[:count])


def _lint(graph: onnx.ModelProto) -> dict[str, Any]:
    findings = lint_graph(graph, target="tensorrt")
    errors = sorted({f.rule for f in findings if f.severity == "error"})
    return {"errors": errors, "warnings": sorted({f.rule for f in findings if f.severity == "warn"})}
