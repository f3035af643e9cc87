"""Layers that run for nothing stay float: what was calibrated is what can be exported."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from gacq_deploy.calibration.cost.estimate import estimate_calibration
from gacq_deploy.calibration.stage import calibrate
from gacq_deploy.export.stage import export_onnx
from gacq_deploy.graph.index import module_of
from gacq_deploy.progress import SilentReporter
from gacq_deploy.recipe.load import load_recipe
from gacq_deploy.run_directory import RunDirectory

SETTINGS = (
    "model={source: 'python:tests.support.models.odd_family:make_unheard', component: painter}",
    "quantization.rules=[{match: '*', bits: 8}, {match: clock, ignore: true}]",
    "samples.trajectories=3",
    "samples.steps=3",
    "samples.prompts=[a cat, a dog]",
    "calibration.reconstruction.iterations=4",
    "calibration.weighting.mode=uniform",
    "calibration.polish.steps=0",
    "calibration.threads=1",
    "parity.probe={trajectories: 1, local_samples: 1}",
    "parity.steps=3",
    "runtime.steps=3",
)
UNUSED = "mixers.1.words"


class Recording(SilentReporter):
    """Remembers what a stage said."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.mark.slow
def test_a_branch_that_no_output_needs_is_told_left_float_and_does_not_stop_the_export(
    tmp_path: Path,
) -> None:
    recipe = load_recipe("sd15-w8a8", SETTINGS)
    estimate = estimate_calibration(recipe)
    assert estimate.unused_modules == (UNUSED,)
    report = Recording()
    artifact = calibrate(recipe, RunDirectory(tmp_path), report=report)
    assert report.notes[0] == f"1 layer runs, but nothing uses its result: left float: {UNUSED}"
    planned = {
        "enter",
        "leave",
        *(f"mixers.{i}.{part}" for i in range(2) for part in ("picture", "words", "gate")),
    } - {UNUSED}
    assert set(artifact.plan.modules) == planned
    assert estimate.quantized_modules == len(planned)
    export_onnx(RunDirectory(tmp_path), targets=["tensorrt"], allow_python=True)
    for name in ("float.onnx", "int8.onnx"):
        nodes = onnx.load(tmp_path / "onnx" / name).graph.node
        layers = {module_of(node) for node in nodes if node.op_type in ("Conv", "Gemm", "MatMul")}
        assert planned <= layers
        assert UNUSED not in layers
