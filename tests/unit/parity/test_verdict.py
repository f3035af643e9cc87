from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gacq_deploy.backends.processor import describe_processor
from gacq_deploy.errors import ArtifactError, GateError
from gacq_deploy.export.record import ExportRecord
from gacq_deploy.parity.report import Comparison, assemble, measured
from gacq_deploy.parity.verdict import require_not_failed
from gacq_deploy.recipe.sections import ParitySection
from gacq_deploy.run_directory import RunDirectory

EXPORT = cast("ExportRecord", SimpleNamespace(files={"int8.onnx": SimpleNamespace(sha256="a" * 64)}))
HERE = {"files": {"int8.onnx": "a" * 64}, "processor": describe_processor()}
EXACT = measured("exact", "artifact", "int8.onnx", {"differences": 0.0})


def judged(tmp_path: Path, *comparisons: Comparison, **about: Any) -> RunDirectory:
    directory = RunDirectory(tmp_path)
    report = assemble(
        (EXACT, *comparisons), ParitySection(), trajectory={}, noise_floor={}, subject={**HERE, **about}
    )
    report.save(directory.parity_json)
    return directory


def error(engine: str, difference: float | None, **details: Any) -> Comparison:
    metrics: Mapping[str, float | None] = {"difference_db": difference}
    return measured("error", "reference", f"int8.onnx@{engine}", metrics, **details)


def test_an_engine_that_failed_is_refused_and_told_why(tmp_path: Path) -> None:
    run = judged(tmp_path, error("openvino", 7.25), error("ort-cpu", 0.1))
    with pytest.raises(GateError) as caught:
        require_not_failed(run, "int8.onnx", "openvino", export=EXPORT)
    assert "int8.onnx in openvino failed parity on this machine" in caught.value.message
    assert "difference_db 7.25 (<= 0.5)" in caught.value.message
    assert "--allow-failed" in caught.value.hint
    require_not_failed(run, "int8.onnx", "ort-cpu", export=EXPORT)


def test_what_could_not_be_evaluated_failed(tmp_path: Path) -> None:
    run = judged(tmp_path, error("openvino", None))
    with pytest.raises(GateError, match="not evaluated"):
        require_not_failed(run, "int8.onnx", "openvino", export=EXPORT)


def test_a_file_that_is_not_the_artifact_fails_in_every_engine(tmp_path: Path) -> None:
    run = judged(tmp_path, EXACT.model_copy(update={"metrics": {"differences": 3.0}}))
    for engine in ("ort-cpu", "openvino"):
        with pytest.raises(GateError, match="differences 3"):
            require_not_failed(run, "int8.onnx", engine, export=EXPORT)
    require_not_failed(run, "float.onnx", "ort-cpu", export=EXPORT)


@pytest.mark.parametrize(
    "about",
    [
        {"files": {"int8.onnx": "b" * 64}},
        {"processor": {**describe_processor(), "name": "another one"}},
        {"processor": None},
    ],
    ids=["other graphs", "other machine", "does not say"],
)
def test_a_verdict_about_something_else_says_nothing(tmp_path: Path, about: dict[str, Any]) -> None:
    run = judged(tmp_path, error("openvino", 7.25), **about)
    require_not_failed(run, "int8.onnx", "openvino", export=EXPORT)


def test_a_compiled_engine_is_known_by_its_key(tmp_path: Path) -> None:
    failed = error("tensorrt", 7.25).model_copy(update={"candidate": "int8.onnx@tensorrt batch 4"})
    run = judged(tmp_path, failed, engines={"tensorrt": "key"})
    with pytest.raises(GateError, match=r"int8\.onnx in tensorrt"):
        require_not_failed(run, "int8.onnx", "tensorrt", key="key")
    require_not_failed(run, "int8.onnx", "tensorrt", key="newer")


def test_without_a_verdict_nothing_is_refused_and_a_damaged_one_is_said(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    require_not_failed(run, "int8.onnx", "openvino", export=EXPORT)
    run.parity_json.write_text("{}")
    with pytest.raises(ArtifactError, match=r"parity\.json"):
        require_not_failed(run, "int8.onnx", "openvino", export=EXPORT)


def test_long_reasons_are_cut(tmp_path: Path) -> None:
    budget = {"eps_sqnr_db": 1.0, "eps_cosine": 0.1, "trajectory_cosine": 0.1, "image_psnr_db": 1.0}
    failed = measured("budget", "float.onnx@ort-cpu", "int8.onnx@ort-cpu", budget)
    with pytest.raises(GateError, match=r"eps_sqnr_db 1 .*; and 3 more"):
        require_not_failed(judged(tmp_path, failed), "int8.onnx", "ort-cpu", export=EXPORT)
