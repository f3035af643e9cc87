"""One tiny exported run; tests that change it get a copy."""

from __future__ import annotations

import pytest

from gacq_deploy.artifact.artifact import load_artifact
from gacq_deploy.calibration.stage import calibrate
from gacq_deploy.export.stage import export_onnx
from gacq_deploy.graph.files import read_graph
from gacq_deploy.parity.exact import CANONICAL, CPU
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.sensitivity.variants import Variants
from tests.support.artifacts.judged_run import make_recipe
from tests.support.artifacts.left_float import leave_float


@pytest.fixture(scope="package")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A calibrated and exported tiny model with few quantized layers; only ``sensitivity.json`` is written to it."""
    root = tmp_path_factory.mktemp("sensitivity")
    recipe = make_recipe(root)
    few = RunDirectory(root / "few")
    # one resnet behind a concatenation, and the three layers that share the input of attention
    left = ("down_blocks.*", "mid_block.resnets.*", "*.to_out.0", "up_blocks.0.*", "up_blocks.1.resnets.1.*")
    calibrate(leave_float(recipe, left), few)
    export_onnx(few)
    return few


@pytest.fixture(scope="package")
def variants(run: RunDirectory) -> dict[str, Variants]:
    """Exported graph -> its variants."""
    artifact, graph = load_artifact(run.artifact), read_graph(run.float_onnx)
    return {flavour.file: Variants(graph, artifact, flavour) for flavour in (CANONICAL, CPU)}
