"""INT4 weights of linear layers go the whole way: learned, exported, judged, and still INT4 in a compiled plan."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from gacq_deploy.build_trt.stage import BuildRequest, build_engines
from gacq_deploy.calibration.stage import calibrate
from gacq_deploy.engines.catalogue import CANONICAL, CPU, FLOAT
from gacq_deploy.export.stage import export_onnx
from gacq_deploy.inspection.artifact import inspect_artifact
from gacq_deploy.parity import check_parity
from gacq_deploy.recipe.build import BuildSection
from gacq_deploy.recipe.load import load_recipe
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.sensitivity.stage import SensitivitySettings, measure_sensitivity
from tests.support.models.architectures import save_pipeline, small_dit

pytestmark = pytest.mark.slow
# heads of 8 make the model 32 wide: two blocks of 16
RULES = (
    "{match: '*', layer: linear, bits: 4, block: 16}",
    "{match: '*.timestep_embedder.*', ignore: true}",
    "{match: 'proj_out*', ignore: true}",
)
LAYERS = {
    "norm1.linear", "attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ff.net.0.proj", "ff.net.2",
}  # fmt: skip
QUICK = (
    "samples.trajectories=6",
    "samples.steps=4",
    # of these samples learning gains, however short, and is kept
    "samples.seed=5",
    "calibration.threads=1",
    "calibration.reconstruction.iterations=5",
    "calibration.weighting.polish_iterations=1",
    "calibration.polish.steps=5",
    "parity={steps: 4, images: 4, probe: {trajectories: 2, local_samples: 2}}",
    "runtime.steps=4",
)
BLOCKS = f"quantization.rules=[{', '.join(RULES)}]"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    root = tmp_path_factory.mktemp("w4a16")
    source = save_pipeline(small_dit(attention_head_dim=8, num_layers=1), root / "model")
    directory = RunDirectory(root / "run")
    calibrate(load_recipe("dit-w4a16", [*QUICK, BLOCKS, f"model.source={source}"]), directory)
    export_onnx(directory)
    return directory


def test_every_weight_is_learned_on_scales_of_its_blocks(run: RunDirectory) -> None:
    sites = inspect_artifact(run.root).sites
    assert {(s.bits, s.granularity, s.site.rpartition(":")[2]) for s in sites} == {
        (4, "block of 16", "weight")
    }
    assert {s.site.partition(":")[0].removeprefix("transformer_blocks.0.") for s in sites} == LAYERS
    (block,) = inspect_artifact(run.root).blocks
    assert block.kept
    assert block.loss_end < block.loss_start


def test_the_graphs_hold_int4_at_an_opset_that_has_it(run: RunDirectory) -> None:
    record = export_onnx(run)
    assert record.opset == 21
    assert run.load_recipe().export.opset == 20
    assert record.quantized_sites == {CANONICAL: 7, CPU: 7}
    assert not any(counts.error or counts.warn for counts in record.lint)
    graph = onnx.load(run.int8_onnx).graph
    codes = [t for t in graph.initializer if t.name.endswith(":weight.codes")]
    assert len(codes) == 7
    assert {t.data_type for t in codes} == {TensorProto.INT4}
    assert sum(len(t.raw_data) for t in codes) * 2 == sum(int(np.prod(t.dims)) for t in codes)
    assert record.files[CANONICAL].bytes < record.files[FLOAT].bytes


def test_every_engine_computes_what_torch_does(run: RunDirectory) -> None:
    report = check_parity(run, threads=1)
    assert report.passed, report.to_text()
    local = {e.candidate: e for e in report.comparisons if e.evidence == "local"}
    assert set(local) == {f"{CANONICAL}@ort-cpu", f"{CANONICAL}@openvino", f"{CPU}@ort-cpu"}
    assert all(e.metrics["equal_share"] == 1.0 for e in local.values())


@pytest.mark.rtx
def test_the_weights_are_int4_in_the_plan_and_meet_their_product_there(run: RunDirectory) -> None:
    (built,) = build_engines(run, BuildRequest(BuildSection(backend="tensorrt-rtx", fp16_baseline=False)))
    coverage = built.record.coverage
    assert coverage is not None
    assert coverage["weight_only"] == {"planned": 7, "int4": 7, "in_product": 7, "lost": []}
    assert (coverage["planned"], coverage["kernels"]["int8"]) == (0, 0)
    layers = json.loads((built.folder / "layers.json").read_text())["layers"]
    holding = [layer for layer in layers if "Int4" in layer["constants"]]
    assert len(holding) == 7
    assert {(tuple(x["inputs"]), tuple(x["constants"])) for x in holding} == {(("Half",), ("Int4", "Half"))}


def test_what_each_layer_costs_is_what_its_weight_costs(run: RunDirectory) -> None:
    found = measure_sensitivity(run, settings=SensitivitySettings(graph=CANONICAL, states=4, threads=1))
    assert {m.module.removeprefix("transformer_blocks.0.") for m in found.modules} == LAYERS
    for module in found.modules:
        assert module.role_db == {"weight": module.alone_db}
