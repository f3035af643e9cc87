from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from gacq_deploy.bench import BenchReport
from gacq_deploy.bench.report import Host, Ratio, Spread
from gacq_deploy.build_trt.coverage import Coverage, NodeCoverage, WeightCoverage
from gacq_deploy.build_trt.manifest import EngineInputs, EngineManifest
from gacq_deploy.build_trt.options import CompileOptions
from gacq_deploy.inspection.artifact import Inspection
from gacq_deploy.parity.report import assemble, measured
from gacq_deploy.recipe.sections import ParitySection
from gacq_deploy.report.collect import collect
from gacq_deploy.report.tables import (
    ReportTable,
    compiled_table,
    facts,
    gate_table,
    name,
    number,
    ratio_table,
    size_cell,
    skipped_engines,
    text,
)
from gacq_deploy.report.verdict import gate_rows
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.storage.records import ListedFile
from tests.unit.report.conftest import write_recipe


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (999_900, "1000 kB"),
        (5_930_000, "5.93 MB"),
        (4 * 10**15, "4000 TB"),
        (None, "-"),
    ],
    ids=str,
)
def test_sizes(count: int | None, shown: str) -> None:
    assert size_cell(count).text == shown


@pytest.mark.parametrize("value", [None, math.nan, math.inf], ids=str)
def test_what_is_no_number_is_a_dash_without_one(value: float | None) -> None:
    assert number(value).text == "-"
    assert number(value).number is None


def test_empty_columns_are_left_out() -> None:
    table = ReportTable.of(
        "t", ("a", "b", "#c"), [(text("x"), text(""), number(1)), (text("y"), text(""), number(2))]
    )
    assert [(c.name, c.numeric) for c in table.columns] == [("a", False), ("c", True)]
    assert [[cell.text for cell in row] for row in table.rows] == [["x", "1"], ["y", "2"]]


def test_names_are_shown_as_they_stand_on_disk() -> None:
    assert name("<b>").text == "<b>"


def test_failing_gates_stand_first_and_say_where() -> None:
    good = measured("flavour", "signed form", "int8.cpu.onnx", {"max_abs": 0})
    bad = measured("error", "torch", "int8.onnx@ort-cpu", {"difference_db": 0.7}, worst={"bucket": 4})
    lost = measured("exporter", "torch/float", "float.onnx@ort-cpu", {})
    report = assemble((good, bad, lost), ParitySection(), trajectory={}, noise_floor={}, subject={})
    table = gate_table([row for comparison in report.comparisons for row in gate_rows(comparison)])
    cells = [{c.name: cell.text for c, cell in zip(table.columns, row, strict=True)} for row in table.rows]
    assert [row["verdict"] for row in cells] == ["FAILS", "FAILS", "holds"]
    assert (cells[0]["value"], cells[0]["threshold"]) == ("0.7", "≤ 0.5")
    assert cells[0]["where it is worst"] == "bucket: 4"
    assert cells[1]["value"] == "not evaluated"


def test_engine_plans_say_what_is_int8_and_what_is_not() -> None:
    options = CompileOptions(backend="tensorrt-rtx", compute_capabilities=("8.6",))
    inputs = EngineInputs(
        graph="int8.onnx", graph_sha256="0", float_type="float16", library="tensorrt-rtx", version="1.7",
        options=options, device=None,
    )  # fmt: skip
    lost = NodeCoverage("n", "Conv", "mid.conv", int8=False, kernel="", rule="weight-axis")
    kept = NodeCoverage("m", "Conv", "conv", int8=True, kernel="")
    files = {"engine.plan": ListedFile(sha256="0", bytes=2_000_000)}
    said = Coverage((lost, *[kept] * 47), {}).document()
    quantized = EngineManifest(inputs=inputs, files=files, coverage=said, seconds=1, peak_mb=1)
    baseline = EngineManifest(
        inputs=inputs.model_copy(update={"graph": "float.onnx", "options": CompileOptions(backend="tensorrt-rtx")}),
        files=files, coverage=None, seconds=1, peak_mb=1,
    )  # fmt: skip
    table = compiled_table([quantized, baseline])
    shown = [[cell.text for cell in row] for row in table.rows]
    assert shown[0][1:] == [
        "int8.onnx", "tensorrt-rtx-1.7", "8.6", "float16", "2 MB", "48", "47", "mid.conv: weight-axis",
    ]  # fmt: skip
    assert shown[1][3] == "any GPU of the library"


def test_engine_plans_count_int4_weights_apart() -> None:
    inputs = EngineInputs(
        graph="int8.onnx", graph_sha256="0", float_type="float16", library="tensorrt-rtx", version="1.7",
        options=CompileOptions(backend="tensorrt-rtx"), device=None,
    )  # fmt: skip
    lost = WeightCoverage("n", "MatMul", "ff.net.2", int4=False, in_product=False, kernel="")
    kept = WeightCoverage("m", "MatMul", "ff.net.0", int4=True, in_product=True, kernel="")
    record = EngineManifest(
        inputs=inputs, files={"engine.plan": ListedFile(sha256="0", bytes=1)}, seconds=1, peak_mb=1,
        coverage=Coverage((), {}, (lost, *[kept] * 6)).document(),
    )  # fmt: skip
    (row,) = compiled_table([record]).rows
    assert row[-1].text == "6 of 7 layers with INT4 weights alone; ff.net.2: weight not INT4"


def _bench(ratio: float, skipped: dict[str, str]) -> BenchReport:
    spread = Spread(median=ratio, q1=ratio - 0.01, q3=ratio + 0.01, low=ratio, high=ratio)
    return BenchReport(
        subject={},
        host=Host(cpu="cpu", cores=1, platform="", python="", load_average=0),
        threads=1,
        repeats=1,
        batches=(1,),
        candidates=(),
        ratios=(Ratio(candidate="a/int8.onnx", baseline="a/float.onnx", batch=1, cpu=spread, wall=spread),),
        skipped=skipped,
    )


def test_what_is_not_installed_is_said_once() -> None:
    missing = "Engine 'openvino' is not available: No module named 'openvino'."
    names = ("openvino/float.onnx", "openvino/int8.onnx")
    assert skipped_engines(_bench(1, dict.fromkeys(names, missing))) == (
        "OpenVINO: not installed (`pip install 'gacq-deploy[openvino]'`).",
    )
    assert skipped_engines(_bench(1, {"openvino/int8.onnx": "It would be wrong here."})) == (
        "OpenVINO: It would be wrong here.",
    )
    assert skipped_engines(_bench(1, {"mine/int8.onnx": "No module named 'mine'"})) == (
        "mine: not installed.",
    )


def test_less_than_once_as_fast_is_slower_in_words() -> None:
    (slow,), (fast,) = (ratio_table(_bench(ratio, {})).rows for ratio in (0.976, 1.05))
    assert (slow[3].text, slow[3].tone, slow[3].number) == ("0.98x, 0.97 to 0.99 (slower)", "bad", 0.976)
    assert (fast[3].text, fast[3].tone) == ("1.05x, 1.04 to 1.06", "")


def test_what_calibration_took_is_said_in_words(tmp_path: Path) -> None:
    versions = {
        "started_unix": 1_795_993_186, "wall_s": 12.5, "cpu_s": 9, "peak_memory_mb": 800, "work_key": "abc",
        "stages": {"nearest": {}}, "torch": "2",
    }  # fmt: skip
    write_recipe(tmp_path)
    inspection = Inspection("", "", {}, "", (), (), versions, (), None, (), (), {})
    rows = facts(replace(collect(RunDirectory(tmp_path), images=False), inspection=inspection)).rows
    said = {row[0].text: row[1].text for row in rows}
    assert said["calibration began"] == "2026-11-29 22:59 UTC"
    assert (said["calibration took"], said["calibration CPU time"]) == ("12.5 s", "9 s")
    assert said["calibration most memory"] == "800 MB"
    assert said["calibrated with: torch"] == "2"
    assert not [label for label in said if re.search("_|stages|work", label)]
