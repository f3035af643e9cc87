"""A transformer goes the whole way: calibrated, exported without a convolution to quantize, judged equal."""

from __future__ import annotations

from pathlib import Path

import pytest

from gacq_deploy.calibration.calibrate import calibrate
from gacq_deploy.export.record import CANONICAL, CPU, FLOAT
from gacq_deploy.export.stage import export_onnx
from gacq_deploy.parity import check_parity
from gacq_deploy.recipe import load_recipe
from gacq_deploy.run_directory import RunDirectory
from tests.support.architectures import save_pipeline, small_dit

QUICK = (
    "samples.trajectories=6",
    "samples.steps=4",
    "calibration.threads=1",
    "calibration.reconstruction.iterations=5",
    "calibration.weighting.polish_iterations=1",
    "calibration.polish.steps=5",
    "parity={steps: 4, images: 4, probe: {trajectories: 2, local_samples: 2}}",
    "runtime.steps=4",
)


@pytest.mark.slow
def test_a_dit_is_calibrated_exported_and_judged(tmp_path: Path) -> None:
    source = save_pipeline(small_dit(), tmp_path / "model")
    directory = RunDirectory(tmp_path / "run")
    artifact = calibrate(load_recipe("dit-w8a8", [*QUICK, f"model.source={source}"]), directory)
    assert len(artifact.plan.modules) == 12
    assert artifact.model.family == "DiTTransformer2DModel"
    assert artifact.probe is not None
    assert artifact.probe.outputs["float"].shape[1:] == (4, 8, 8)
    assert set(export_onnx(directory).graphs) == {FLOAT, CANONICAL, CPU}
    assert check_parity(directory).passed
