"""Are the command lines right where nothing here can type them: for TensorRT, and with odd names?"""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from gacq_deploy.parity.tool_commands import (
    SavedFiles,
    compare_command,
    graph_to_reduce,
    least_snr_db,
    reduce_commands,
    trtexec_command,
)
from gacq_deploy.recipe.sections import ParitySection

SAVED = SavedFiles(
    inputs=Path("to do/inputs.json"),
    few=Path("to do/first-rows.json"),
    few_shapes={"sample": (2, 4, 64, 64), "timestep": (2,)},
    raw={"sample": Path("to do/raw/sample.bin"), "timestep": Path("to do/raw/timestep.bin")},
    raw_shapes={"sample": (16, 4, 64, 64), "timestep": (16,)},
)
GRAPH = Path("runs/mine/onnx/int8.onnx")


def test_float_rounding_bounds_what_two_executions_may_differ_by() -> None:
    section = ParitySection(local_rtol=1e-4, error_difference_db=0.5)
    assert least_snr_db(section) == pytest.approx(80)
    assert least_snr_db(section, 30.0) == pytest.approx(30 - 0.5 - 6.0206, abs=1e-4)
    assert least_snr_db(section, 300.0) == pytest.approx(80), "a graph whose quantization costs nothing"


def test_a_path_with_a_blank_stays_one_word() -> None:
    command = compare_command(GRAPH, SAVED, Path("to do/outputs/x.json"), "int8.onnx@ort-cpu", 23.4699)
    words = shlex.split(command.line)
    assert words[words.index("--load-inputs") + 1] == "to do/inputs.json"
    assert words[words.index("--snr-threshold") + 1] == "23.46"
    assert words[words.index("--graph-optimization-level") + 1] == "ORT_DISABLE_ALL"
    assert "optimization" not in compare_command(GRAPH.with_name("float.onnx"), SAVED, Path("x"), "", 80).line


@pytest.mark.parametrize(
    ("engine", "start", "runner"),
    [
        ("ort-cpu", "polygraphy debug reduce", "--onnxrt --load-inputs"),
        ("tensorrt", "polygraphy debug reduce", "--trt --strongly-typed --load-inputs"),
        (
            "tensorrt-rtx",
            "POLYGRAPHY_USE_TENSORRT_RTX=1 polygraphy debug reduce",
            "--trt --strongly-typed --load",
        ),
    ],
)
def test_the_check_runs_the_engine_that_was_judged(engine: str, start: str, runner: str) -> None:
    *_, command = reduce_commands(GRAPH, SAVED, engine, 25.0)
    line, _, check = command.line.partition(" --check ")
    assert line.startswith(start)
    assert shlex.split(line)[-2:] == ["sample:[2,4,64,64]", "timestep:[2]"]
    assert check.startswith(f"polygraphy run polygraphy_debug.onnx {runner}")


def test_trtexec() -> None:
    assert shlex.split(trtexec_command(GRAPH, SAVED).line) == [
        "trtexec",
        "--onnx=runs/mine/onnx/int8.onnx",
        "--stronglyTyped",
        "--shapes=sample:16x4x64x64,timestep:16",
        "--loadInputs=sample:to do/raw/sample.bin,timestep:to do/raw/timestep.bin",
        "--exportOutput=trtexec.json",
    ]


def test_what_tensorrt_compiles_is_taken_apart_first() -> None:
    assert graph_to_reduce({"float.onnx", "int8.cpu.onnx", "int8.onnx"}) == "int8.onnx"
    assert graph_to_reduce({"float.onnx", "int8.cpu.onnx"}) == "int8.cpu.onnx"
    assert graph_to_reduce({"float.onnx"}) is None
