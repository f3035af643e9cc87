"""What is said of an engine that would be wrong on this processor, or that failed parity on this machine?"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from gacq_deploy.backends.processor import this_processor
from gacq_deploy.diffusers import load_denoiser
from gacq_deploy.errors import BackendUnavailable, GateError
from gacq_deploy.parity import load_report
from gacq_deploy.recipe.sections import ParitySection
from gacq_deploy.run_directory import RunDirectory
from tests.support.graphs.saturating import cap_openvino
from tests.support.programs.commands import invoke

WRONG = "openvino would compute this graph wrong here"
QUICK = ("--batch", "1", "--repeats", "1")

pytestmark = pytest.mark.skipif(not this_processor().is_x86, reason="other processors are not judged")


def command(*arguments: str | Path, code: int = 0) -> Any:
    done = invoke([*map(str, arguments), "--json"])
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def wide_run(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run with weights of 8 bits: pairs of them overflow 16-bit sums."""
    root = tmp_path_factory.mktemp("wide")
    (root / "wide.yaml").write_text(recipe_file.read_text().replace("bits: 7", "bits: 8"))
    command("calibrate", "-r", root / "wide.yaml", "-o", root / "run")
    command("export", "--onnx", root / "run")
    return root / "run"


@pytest.fixture
def wide_copy(wide_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, on a processor without VNNI as far as OpenVINO is concerned."""
    cap_openvino(monkeypatch)
    return Path(shutil.copytree(wide_run, tmp_path / "run"))


def test_parity_lists_it_as_not_judged_and_declares_no_gate_for_it(wide_copy: Path) -> None:
    document = command("parity", wide_copy, "--threads", "1")
    assert document["passed"]
    assert list(document["subject"]["not_judged"]) == ["int8.onnx@openvino"]
    assert WRONG in document["subject"]["not_judged"]["int8.onnx@openvino"]
    assert not [e for e in document["comparisons"] if "openvino" in e["candidate"]]
    shown = invoke(["parity", str(wide_copy), "--rejudge", str(_thresholds(wide_copy))])
    assert f"int8.onnx@openvino is not judged. {WRONG}" in " ".join(shown.stdout.split())
    assert "mid_block" in shown.stdout or "down_blocks" in shown.stdout  # the first layer is named
    error = command("parity", wide_copy, "--engine", "openvino", code=4)["error"]
    assert WRONG in error["message"]


def _thresholds(run: Path) -> Path:
    path = run.parent / "thresholds.yaml"
    path.write_text("{}")
    return path


@pytest.mark.usefixtures("warm_benches")
def test_run_and_bench_refuse_it_and_say_what_works_instead(wide_copy: Path, tmp_path: Path) -> None:
    for arguments in (
        ("run", wide_copy, "-n", "1", "--engine", "openvino", "-o", tmp_path / "a.png"),
        ("bench", wide_copy, "--engine", "openvino", *QUICK),
    ):
        error = command(*arguments, code=4)["error"]
        assert WRONG in error["message"]
        assert "ONEDNN_MAX_CPU_ISA=AVX2" in error["message"]
        assert "ort-cpu" in error["hint"]
    assert not (tmp_path / "a.png").exists()
    assert not (wide_copy / "bench.json").exists()
    report = command("bench", wide_copy, *QUICK)
    assert {c["engine"] for c in report["candidates"]} == {"ort-cpu"}
    assert WRONG in report["skipped"]["openvino/int8.onnx"]


def test_a_graph_that_is_not_there_is_no_reason(wide_copy: Path) -> None:
    shutil.rmtree(wide_copy / "onnx")
    command("export", "--onnx", wide_copy, "--target", "ort-cpu")
    report = command("bench", wide_copy, "--engine", "openvino", *QUICK)
    assert "not exported" in report["skipped"]["openvino/int8.onnx"]


def test_a_pipeline_does_not_get_it(wide_copy: Path) -> None:
    with pytest.raises(BackendUnavailable, match=WRONG):
        load_denoiser(wide_copy, engine="openvino")
    load_denoiser(wide_copy, engine="ort-cpu").close()


def test_weights_that_cannot_overflow_are_served_everywhere(
    run_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cap_openvino(monkeypatch)
    made = command("run", run_copy, "-n", "1", "--engine", "openvino", "-o", tmp_path / "a.png")
    assert made["graph"] == "int8.onnx"


def test_doctor_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cap_openvino(monkeypatch)
    checks = {check["name"]: check for check in command("doctor")["checks"]}
    openvino = checks["engine openvino"]
    assert openvino["status"] == "warning"
    assert "16 bits" in openvino["value"]
    assert "ONEDNN_MAX_CPU_ISA=AVX2" in openvino["value"]
    assert "ort-cpu" in openvino["hint"]
    assert checks["engine ort-cpu"]["status"] == "ok"


@pytest.fixture
def failed_copy(run_copy: Path) -> Path:
    """A run whose engine failed parity here: its own figures, judged by a stricter recipe."""
    run = RunDirectory(run_copy)
    report = load_report(run.parity_json)
    strict = {**report.protocol.model_dump(), "budget": {"image_psnr_db": 90.0}}
    report.under(ParitySection.model_validate(strict)).save(run.parity_json)
    return run_copy


@pytest.mark.usefixtures("warm_benches")
def test_an_engine_that_failed_parity_is_refused_unless_told_otherwise(
    failed_copy: Path, tmp_path: Path
) -> None:
    picture = tmp_path / "a.png"
    for arguments in (
        ("run", failed_copy, "-n", "1", "-o", picture),
        ("bench", failed_copy, "--engine", "ort-cpu", *QUICK),
    ):
        error = command(*arguments, code=3)["error"]
        assert "int8.cpu.onnx in ort-cpu failed parity on this machine" in error["message"]
        assert "image_psnr_db" in error["message"]
        assert "--allow-failed" in error["hint"]
    assert not picture.exists()
    with pytest.raises(GateError, match="failed parity"):
        load_denoiser(failed_copy)
    load_denoiser(failed_copy, allow_failed=True).close()
    command("run", failed_copy, "-n", "1", "--allow-failed", "-o", picture)
    assert picture.exists()
    report = command("bench", failed_copy, "--engine", "ort-cpu", "--allow-failed", *QUICK)
    assert {c["file"] for c in report["candidates"]} == {"float.onnx", "int8.cpu.onnx"}
    page = command("report", failed_copy)  # its images show what the verdict is about
    assert "pictures" not in page["missing"]


@pytest.mark.usefixtures("warm_benches")
def test_only_engines_that_failed_are_left_out_of_bench(failed_copy: Path) -> None:
    report = command("bench", failed_copy, *QUICK)
    assert "failed parity" in report["skipped"]["ort-cpu/int8.cpu.onnx"]
    assert {c["name"] for c in report["candidates"]} >= {"openvino/int8.onnx"}
