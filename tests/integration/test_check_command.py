"""`check` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from gacq_deploy.check.check import CheckVerdict
from gacq_deploy.check.targets import BY_NAME
from gacq_deploy_cli import check
from tests.support.graphs import qdq_graphs as graphs
from tests.support.programs.commands import invoke


def _check(*arguments: str, code: int = 0) -> Any:
    done = invoke(["check", *arguments, "--json"])
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


def test_every_verdict_is_explained() -> None:
    assert tuple(check.MEANING) == CheckVerdict.__args__


@pytest.mark.usefixtures("warm_builds")
@pytest.mark.parametrize(
    ("target", "graph"),
    [("tensorrt", "int8.onnx"), ("tensorrt-10", "int8.onnx"), ("ort-cpu", "int8.cpu.onnx")],
)
def test_a_run_directory_has_a_graph_for_each_target(finished_run: Path, target: str, graph: str) -> None:
    document = _check(str(finished_run), "--target", target)
    assert Path(document["file"]) == finished_run / "onnx" / graph
    assert document["target"] == BY_NAME[target]
    assert document["verdict"] == "likely"
    assert document["layers"]["quantized"] > 0


def test_running_it_verifies_the_cpu_graph(finished_run: Path) -> None:
    document = _check(str(finished_run), "--target", "ort-cpu", "--compile")
    assert document["verdict"] == "verified"
    assert document["layers"]["measured"] == document["layers"]["quantized"]
    shown = invoke(["check", str(finished_run), "--target", "ort-cpu", "--compile"]).stdout
    assert "verified (loaded and run here)" in shown


def test_no_meaning_speaks_of_another_target() -> None:
    for meaning in check.MEANING.values():
        assert not set(BY_NAME) & set(meaning.replace("(", " ").replace(":", " ").split())


@pytest.mark.rtx
def test_compiling_verifies_the_engine_graph(finished_run: Path) -> None:
    document = _check(str(finished_run), "--target", "tensorrt-rtx", "--compile")
    assert document["verdict"] == "verified"
    layers = document["layers"]
    assert layers["measured"] == layers["predicted"] == layers["quantized"] > 0


@pytest.mark.usefixtures("warm_builds")
def test_a_blocked_graph_exits_3_and_says_why(finished_run: Path) -> None:
    path = str(finished_run / "onnx" / "int8.cpu.onnx")
    document = _check(path, code=3)
    assert document["target"] == "tensorrt-11"
    blocked = {r["rule"] for r in document["reasons"] if r["weight"] == "blocked"}
    assert {"uint8-codes", "bias-int32"} <= blocked
    done = invoke(["check", path])
    assert done.exit_code == 3
    for word in ("blocked", "bias-int32", "Asked: rules", "Layers with Q/DQ"):
        assert word in done.stdout


@pytest.mark.usefixtures("warm_builds")
def test_a_clean_graph_has_no_table(tmp_path: Path) -> None:
    onnx.save(graphs.conv(), tmp_path / "conv.onnx")
    done = invoke(["check", str(tmp_path / "conv.onnx")])
    assert done.exit_code == 0
    assert "likely" in done.stdout
    assert "reasons" not in done.stdout


def test_wrong_arguments(tmp_path: Path) -> None:
    path = tmp_path / "conv.onnx"
    onnx.save(graphs.conv(), path)
    assert invoke(["check", str(path), "--target", "tensorrt-9"]).exit_code == 2
    assert invoke(["check", str(path), "--compile", "--target", "ort-cpu", "--shapes", "y:1"]).exit_code == 2
    assert invoke(["check", str(path), "--shapes", "x"]).exit_code == 2
    assert invoke(["check", str(tmp_path)]).exit_code == 5
    assert invoke(["check", str(tmp_path / "nothing.onnx")]).exit_code == 5
    path.write_bytes(np.arange(99, dtype=np.uint8).tobytes())
    assert invoke(["check", str(path)]).exit_code == 5
