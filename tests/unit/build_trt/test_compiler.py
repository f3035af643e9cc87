"""The compiler in its child process: what it builds, and every way in which it can fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest

from gacq_deploy.build_trt import compiler
from gacq_deploy.build_trt.compiler import Limits, compile_graph, describe_library, parse_graph
from gacq_deploy.build_trt.float16.convert import to_half
from gacq_deploy.build_trt.layers import int8_nodes
from gacq_deploy.build_trt.options import CompileOptions, ShapeRange
from gacq_deploy.errors import BackendUnavailable, EngineError, ResourceError
from gacq_deploy.processes.spawn import child_environment
from gacq_deploy.progress import SilentReporter
from tests.support.graphs import qdq_graphs as patterns
from tests.support.graphs.graph_sketch import Sketch

RTX = CompileOptions(backend="tensorrt-rtx")


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    path = tmp_path / "conv.onnx"
    onnx.save_model(patterns.conv(), str(path))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "build"
    path.mkdir()
    return path


@pytest.mark.rtx
def test_a_plan_and_its_layers(graph: Path, folder: Path) -> None:
    compiled = compile_graph(graph, RTX, folder=folder)
    assert compiled.engine.stat().st_size > 1000
    assert compiled.library == "tensorrt-rtx"
    assert compiled.version.startswith("1.")
    assert compiled.peak_mb > 10
    assert len(int8_nodes(compiled.layers)) > 0
    assert any(layer.int8 for layer in compiled.layers)


@pytest.mark.rtx
def test_two_builds_write_the_same_bytes(graph: Path, tmp_path: Path) -> None:
    # the worker's own command: two forks of one server would have the same addresses
    plans = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        plans.append(compile_graph(graph, RTX, folder=tmp_path / name).engine.read_bytes())
    assert plans[0] == plans[1]


@pytest.mark.rtx
def test_nothing_but_progress_stands_on_stdout(graph: Path, folder: Path) -> None:
    job = {"graph": str(graph), "folder": str(folder), "options": RTX.model_dump(mode="json")}
    (folder / "job.json").write_text(json.dumps(job))
    done = subprocess.run(
        [*compiler.WORKER, str(folder / "job.json")],
        env=child_environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert said
    assert all(line.keys() == {"phase", "step", "of"} for line in said)
    assert done.stderr == ""


@pytest.mark.rtx
@pytest.mark.usefixtures("warm_builds")
def test_shapes_for_an_input_that_there_is_not(graph: Path, folder: Path) -> None:
    shapes = ShapeRange(min=(1,), opt=(1,), max=(1,))
    with pytest.raises(EngineError, match=r"configuration is refused: .*nobody") as caught:
        compile_graph(graph, RTX.model_copy(update={"profiles": ({"nobody": shapes},)}), folder=folder)
    assert caught.value.hint == "Correct the option."


@pytest.mark.rtx
@pytest.mark.usefixtures("warm_builds")
@pytest.mark.parametrize("capability", ["7.5", "8.6", "8.9", "12.0"])
def test_targets_that_exist(graph: Path, folder: Path, capability: str) -> None:
    options = RTX.model_copy(update={"compute_capabilities": (capability,)})
    assert compile_graph(graph, options, folder=folder).engine.is_file()


@pytest.mark.rtx
@pytest.mark.usefixtures("warm_builds")
def test_turing_has_no_int8_convolution_but_matrix_products(folder: Path, tmp_path: Path) -> None:
    def int8(model: onnx.ModelProto, capability: str) -> bool:
        path = tmp_path / "half.onnx"
        onnx.save_model(to_half(model).model, str(path))
        options = RTX.model_copy(update={"compute_capabilities": (capability,)})
        products = [x for x in compile_graph(path, options, folder=folder).layers if x.is_product]
        return [x.int8 for x in products] == [True]

    assert not int8(patterns.conv(), "7.5")
    assert int8(patterns.conv(), "8.6")
    assert int8(patterns.matrix(), "7.5")


@pytest.mark.rtx
@pytest.mark.usefixtures("warm_builds")
def test_a_target_that_does_not_exist(graph: Path, folder: Path) -> None:
    with pytest.raises(EngineError, match=r"no target 9\.0; there are 7\.5, 8\.0"):
        compile_graph(graph, RTX.model_copy(update={"compute_capabilities": ("9.0",)}), folder=folder)
    assert not (folder / "engine.plan").exists()


@pytest.mark.rtx
@pytest.mark.usefixtures("warm_builds")
def test_a_refused_node_is_named_with_its_module_and_a_remedy(folder: Path, tmp_path: Path) -> None:
    model = patterns.conv_weight(scale=np.zeros(patterns.CHANNELS, np.float32))
    node = next(n for n in model.graph.node if n.op_type == "DequantizeLinear" and "w" in n.name)
    onnx.helper.set_metadata_props(node, {"gacq.module": "down.conv1"})
    path = tmp_path / "zero.onnx"
    onnx.save_model(model, str(path))
    with pytest.raises(
        EngineError, match=r"refuses zero\.onnx: node '.*' .*module 'down\.conv1'.*positive"
    ) as caught:
        compile_graph(path, RTX, folder=folder)
    assert "Clamp the scales of dead channels" in caught.value.hint


@pytest.mark.rtx
def test_a_crash_of_the_builder_is_an_error(folder: Path, tmp_path: Path) -> None:
    s = Sketch(inputs={**patterns.IMAGE, "scale": []})
    s.node("QuantizeLinear", ["x", "scale", s.store("zero", 0, np.int8)], "q")
    s.node("DequantizeLinear", ["q", "scale", "zero"], "dq")
    s.conv("dq", weight=s.weight("w", patterns.CODES, patterns.SCALES))
    path = tmp_path / "crash.onnx"
    onnx.save_model(s.model(), str(path))
    with pytest.raises(EngineError, match=r"crashed \(SIGSEGV\) in phase .* log ends"):
        compile_graph(path, RTX, folder=folder)
    assert not (folder / "engine.plan").exists()


@pytest.mark.rtx
@pytest.mark.usefixtures("warm_builds")
def test_a_dynamic_graph_without_profile_is_refused(folder: Path, tmp_path: Path) -> None:
    model = patterns.conv()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    path = tmp_path / "dynamic.onnx"
    onnx.save_model(model, str(path))
    with pytest.raises(EngineError, match=r"no engine.*profile"):
        compile_graph(path, RTX, folder=folder)


@pytest.mark.rtx
@pytest.mark.usefixtures("warm_builds")
def test_parsing_alone_builds_nothing(graph: Path, folder: Path) -> None:
    assert parse_graph(graph, "tensorrt-rtx", folder=folder).startswith("1.")
    assert not (folder / "engine.plan").exists()


@pytest.mark.rtx
def test_a_library_tells_its_version_and_targets() -> None:
    facts = describe_library("tensorrt-rtx")
    assert facts.version.startswith("1.")
    assert {"8.0", "8.6", "8.9"} <= set(facts.targets)
    assert list(facts.targets) == sorted(facts.targets, key=float)


@pytest.mark.parametrize(
    "body",
    [
        "import os; os.kill(os.getpid(), 11)",
        "raise RuntimeError('no driver')",
        "raise ImportError('libnvinfer.so.11: cannot open')",
        "raise OSError('libcudart')",
        "__version__ = 'banana'",
        "",
        "__version__ = '10.1.0'",
    ],
)
def test_a_library_that_does_not_serve_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    (tmp_path / "tensorrt.py").write_text(body)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path), *sys.path)))
    with pytest.raises(BackendUnavailable, match=r"^tensorrt") as caught:
        describe_library("tensorrt")
    assert "gacq-deploy[rtx]" in caught.value.hint


def test_a_missing_library_names_both_installs(graph: Path, folder: Path) -> None:
    with pytest.raises(BackendUnavailable, match="tensorrt is not available") as caught:
        compile_graph(graph, CompileOptions(backend="tensorrt"), folder=folder)
    assert "gacq-deploy[trt]" in caught.value.hint
    assert "gacq-deploy[rtx]" in caught.value.hint


def stand_in(monkeypatch: pytest.MonkeyPatch, folder: Path, body: str) -> None:
    """Put a builder that behaves badly in the worker's place."""
    script = folder / "bad.py"
    script.write_text("import os, signal, sys, time, json, pathlib\n" + textwrap.dedent(body))
    monkeypatch.setattr(compiler, "WORKER", (sys.executable, str(script)))


@pytest.mark.parametrize(
    ("inspection", "expected"),
    [
        ("not JSON", "logged"),
        ("{}", "logged"),
        ('{"Layers": ["names only"]}', "logged"),
        (
            '{"Layers": [{"Name": "k", "LayerType": "gemm", "Metadata": "[ONNX Layer: a][ONNX Layer: b]"}]}',
            "k",
        ),
    ],
)
def test_layers_come_from_whoever_names_more_nodes(
    graph: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, inspection: str, expected: str
) -> None:
    dump = "VERBOSE\tLayers:\nName: logged, LayerType: gemm, Metadata: [ONNX Layer: a]\n"
    stand_in(monkeypatch, folder, f"""
        folder = pathlib.Path(sys.argv[1]).parent
        (folder / "engine.plan").write_bytes(b"plan")
        (folder / "builder.log").write_text({dump!r})
        (folder / "inspection.json").write_text({inspection!r})
        (folder / "result.json").write_text(json.dumps({{"status": "built", "version": "1.7"}}))
    """)  # fmt: skip
    (layer,) = compile_graph(graph, RTX, folder=folder).layers
    assert layer.name == expected


@pytest.mark.rtx
def test_files_in_the_working_directory_are_not_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pydantic", "tensorrt_rtx", "signal"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('taken from the working directory')")
    monkeypatch.chdir(tmp_path)
    assert describe_library("tensorrt-rtx").version.startswith("1.")


@pytest.mark.rtx
@pytest.mark.usefixtures("warm_builds")
def test_turing_has_no_float32_matrix_product(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "matrix.onnx"
    onnx.save_model(patterns.matrix(), str(path))
    with pytest.raises(EngineError, match="Turing") as caught:
        compile_graph(path, RTX.model_copy(update={"compute_capabilities": ("7.5",)}), folder=folder)
    assert "float16" in caught.value.hint


def test_a_builder_that_hangs_is_stopped(graph: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, folder, """
        pathlib.Path(sys.argv[1]).with_name("pid").write_text(str(os.getpid()))
        print(json.dumps({"phase": "Timing tactics"}), flush=True)
        time.sleep(600)
    """)  # fmt: skip
    with pytest.raises(ResourceError, match=r"did not finish in 1 s \(phase 'Timing tactics'\)"):
        compile_graph(graph, RTX, folder=folder, limits=Limits(timeout_s=1))
    with pytest.raises(ProcessLookupError):
        os.kill(int((folder / "pid").read_text()), 0)


def test_a_builder_that_eats_memory_is_stopped(
    graph: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, folder, """
        eaten = []
        while True:
            eaten.append(bytearray(b"x" * 20_000_000))
            time.sleep(0.02)
    """)  # fmt: skip
    with pytest.raises(ResourceError, match="allowed are 200 MB"):
        compile_graph(graph, RTX, folder=folder, limits=Limits(timeout_s=60, memory_mb=200))


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        ("os.kill(os.getpid(), signal.SIGABRT)", EngineError, r"crashed \(SIGABRT\)"),
        ("os.kill(os.getpid(), signal.SIGKILL)", ResourceError, "probably for memory"),
        ("sys.exit(7)", EngineError, "ended with code 7"),
        ("raise MemoryError", ResourceError, "probably for memory"),
        ("raise ValueError('odd')", EngineError, "Its errors end: .*ValueError: odd"),
        ("pass", EngineError, "ended with code 0"),
        ("print('not json')", EngineError, "ended with code 0"),
    ],
)
def test_a_builder_that_ends_badly(
    graph: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    body: str,
    error: type[Exception],
    message: str,
) -> None:
    (folder / "engine.plan").write_bytes(b"half a plan")
    stand_in(monkeypatch, folder, body)
    with pytest.raises(error, match=message):
        compile_graph(graph, RTX, folder=folder)
    assert not (folder / "engine.plan").exists()


@pytest.mark.rtx
@pytest.mark.parametrize("room", [100, 4000], ids=["for no log", "for a part of the log"])
def test_a_disk_without_room_for_the_builder_s_log_is_said(
    graph: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    code = f"""
import resource, sys
from pathlib import Path
from gacq_deploy.build_trt import worker
resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, resource.RLIM_INFINITY))
sys.exit(worker.run(Path(sys.argv[1])))
"""
    monkeypatch.setattr(compiler, "WORKER", (sys.executable, "-c", code))
    with pytest.raises(ResourceError, match=f"No space left .*builder.log .* a file may have {room} bytes"):
        compile_graph(graph, RTX, folder=folder)
    assert not (folder / "engine.plan").exists()


def test_an_interrupt_ends_the_child(graph: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupting(SilentReporter):
        def stage(self, name: str, total: int, costs: Sequence[float] = ()) -> None:
            raise KeyboardInterrupt

    stand_in(monkeypatch, folder, "time.sleep(600)")
    with pytest.raises(KeyboardInterrupt):
        compile_graph(graph, RTX, folder=folder, report=Interrupting())  # type: ignore[arg-type]
