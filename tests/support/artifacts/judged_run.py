"""A tiny run, calibrated and exported by the real stages: what the parity tests judge and corrupt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gacq_deploy.artifact.artifact import load_artifact
from gacq_deploy.calibration.stage import calibrate
from gacq_deploy.engines.open import open_engine
from gacq_deploy.export.stage import export_onnx
from gacq_deploy.graph.files import read_graph
from gacq_deploy.parity.comparisons import Setting, Subject
from gacq_deploy.recipe.load import parse_recipe
from gacq_deploy.recipe.sections import Recipe
from gacq_deploy.run_directory import RunDirectory
from tests.support.models.tiny import SCHEDULER, WEIGHT_BITS, tiny_unet

OTHER_MODEL: dict[str, Any] = {"seed": 2, "classes": None, "downsample_padding": 0}
"""Beside the one that most tests take: other weights, no classes, padding of its own."""
RECIPE = """
schema: gacq-deploy/recipe/1
name: tiny
model: {{source: "{source}"}}
samples: {{trajectories: 6, steps: 5}}
quantization:
  rules:
    - {{match: "*", bits: 8}}
    - {{match: "*", role: weight, bits: {bits}}}
    - {{match: "conv_in", ignore: true}}
    - {{match: "conv_out", ignore: true}}
    - {{match: "*time_emb*", ignore: true}}
calibration: {{threads: 1, reconstruction: {{iterations: 0}}, weighting: {{mode: uniform}}, polish: {{steps: 0}}}}
parity:
  {{images: 8, steps: 5, buckets: 2, noise_floor_runs: 1, probe: {{trajectories: 4, local_samples: 8, seed: {seed}}}}}
"""


def make_recipe(root: Path, *, seed: int = 0, bits: int = WEIGHT_BITS, **changes: Any) -> Recipe:
    """Save a tiny random UNet whose weights come from ``seed``; return a recipe for it with nearest rounding."""
    model = root / "model"
    tiny_unet(seed=seed, **changes).save_pretrained(model)
    (model / "scheduler").mkdir()
    (model / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    return parse_recipe(RECIPE.format(source=model, seed=900_000 + seed, bits=bits), origin="tiny")


def make_run(root: Path, **changes: Any) -> RunDirectory:
    """Calibrate and export the model of :func:`make_recipe`."""
    directory = RunDirectory(root / "run")
    calibrate(make_recipe(root, **changes), directory)
    export_onnx(directory)
    return directory


def subject_of(directory: RunDirectory) -> Subject:
    """Load what parity judges."""
    artifact = load_artifact(directory.artifact)
    assert artifact.probe is not None
    graphs = {path.name: read_graph(path) for path in (directory.int8_onnx, directory.cpu_onnx)}
    return Subject(artifact, artifact.probe, read_graph(directory.float_onnx), graphs)


def setting_of(directory: RunDirectory) -> Setting:
    """Judge with the run's own recipe, one thread."""
    return Setting(directory.load_recipe().parity, open_engine, batch=8, threads=1)
