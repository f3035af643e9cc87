"""Loading with the real library: what it says about a plan becomes our error, and the process ends well."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from gacq_deploy.backends.trt.library import has_device
from gacq_deploy.build_trt.compiler import compile_graph
from gacq_deploy.build_trt.options import CompileOptions, ShapeRange
from tests.support.graphs.onnx_graphs import SAMPLE_SHAPE, denoiser_graph

pytestmark = pytest.mark.rtx
CHILD = """
import sys
from pathlib import Path
from gacq_deploy.backends.trt.library import load_trt
from gacq_deploy.backends.trt.deserialized import DeserializedEngine
from gacq_deploy.errors import GacqError
try:
    DeserializedEngine(load_trt("tensorrt-rtx")).load(Path(sys.argv[1]), allow_host_code=False)
except GacqError as error:
    print(type(error).__name__, error)
"""


def _load(plan: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(plan)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    return done.stdout


def test_bytes_that_are_no_plan(tmp_path: Path) -> None:
    plan = tmp_path / "engine.plan"
    plan.write_bytes(b"x" * 5000)
    message = _load(plan)
    assert message.startswith("ArtifactError")
    assert "MALFORMED_ENGINE" in message
    assert "build-trt" in message


@pytest.mark.skipif(has_device(), reason="a GPU is here: the plan loads")
def test_a_plan_without_a_gpu(tmp_path: Path) -> None:
    graph = tmp_path / "float.onnx"
    onnx.save(denoiser_graph(), graph)
    rest: dict[str, tuple[int, ...]] = {"sample": SAMPLE_SHAPE, "timestep": (), "class_labels": ()}
    ranges = {n: ShapeRange(min=(1, *d), opt=(2, *d), max=(4, *d)) for n, d in rest.items()}
    compiled = compile_graph(
        graph, CompileOptions(backend="tensorrt-rtx", profiles=(ranges,)), folder=tmp_path
    )
    assert "driver" in _load(compiled.engine)
