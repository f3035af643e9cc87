"""Which stages does the chain find done? Only those that judged and measured what a new run would."""

from __future__ import annotations

from pathlib import Path

import pytest

from gacq_deploy.artifact.artifact import load_model_record
from gacq_deploy.bench import load_bench, run_bench
from gacq_deploy.bench.measure import BenchSettings
from gacq_deploy.errors import ArtifactError
from gacq_deploy.export.record import load_export
from gacq_deploy.parity import check_parity, load_report
from gacq_deploy.parity.stage import installed_engines
from gacq_deploy.progress import SILENT
from gacq_deploy.storage.sealed import write_sealed
from gacq_deploy.workflow.picture import ensure_comparison, load_comparison
from gacq_deploy.workflow.quickstart import run_chain
from tests.support.artifacts.judged_run import make_run
from tests.support.programs.engine_records import change_engine

QUICK = BenchSettings(batches=(1,), repeats=1, turn_seconds=0.001)


@pytest.mark.usefixtures("warm_benches")
@pytest.mark.slow
def test_reports_on_other_engines_are_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert installed_engines() == ("ort-cpu", "openvino")
    run = make_run(tmp_path)
    recipe = run.load_recipe()
    small = recipe.parity.model_copy(update={"images": 2, "steps": 2})
    recipe.model_copy(update={"parity": small}).save(run.recipe_path)
    recipe = run.load_recipe()
    check_parity(run, engines=["ort-cpu"], threads=1)
    run_bench(run, engines=["ort-cpu"], settings=QUICK)

    with monkeypatch.context() as patch:  # where OpenVINO is not installed, nothing is missing
        change_engine(patch, "openvino", backend="no_such_library:Engine")
        assert installed_engines() == ("ort-cpu",)
        alone = run_chain(recipe, run, settings=QUICK)
    assert set(alone.already_done) == {"calibrate", "export", "parity", "bench"}
    assert load_report(run.parity_json).candidates == {"int8.onnx@ort-cpu", "int8.cpu.onnx@ort-cpu"}

    both = run_chain(recipe, run, settings=QUICK)
    assert set(both.already_done) == {"calibrate", "export", "comparison"}
    assert both.parity.candidates == {"int8.onnx@ort-cpu", "int8.cpu.onnx@ort-cpu", "int8.onnx@openvino"}
    assert {c.engine for c in load_bench(run.bench_json).candidates} == {"ort-cpu", "openvino"}

    assert len(run_chain(recipe, run, settings=QUICK).already_done) == 5

    drawn = load_comparison(run)
    assert len(drawn.seeds) == len(drawn.conditions) == len(drawn.psnr_db) == 12
    assert list(drawn.psnr_db) == sorted(drawn.psnr_db)
    classes = load_model_record(run.artifact).conditioning["class_labels"]["num_classes"]
    assert drawn.conditions == tuple(f"class {seed % classes}" for seed in drawn.seeds)
    older = {**drawn.model_dump(mode="json", by_alias=True), "schema": "gacq-deploy/comparison/1"}
    write_sealed(run.comparison_json, older)
    with pytest.raises(ArtifactError, match=r"Comparison record .* is inconsistent: schema: "):
        load_comparison(run)
    ensure_comparison(run, load_export(run), SILENT)
    assert load_comparison(run) == drawn
