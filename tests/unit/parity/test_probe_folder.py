"""Do NVIDIA's own tools take what parity saves for them, and is nothing else ever in the folder's place?"""

from __future__ import annotations

import errno
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from gacq_deploy.artifact.artifact import load_artifact
from gacq_deploy.backends.trt import polygraphy
from gacq_deploy.errors import ArtifactError, BackendUnavailable, ResourceError, UsageError
from gacq_deploy.parity import check_parity, probe_folder, saved_commands, stage
from gacq_deploy.run_directory import RunDirectory
from tests.support.artifacts.judged_run import make_run
from tests.support.programs.warm_process import polygraphy_tool

Tool = Callable[[str, Path], "subprocess.CompletedProcess[str]"]
GRAPHS = ("float.onnx", "int8.onnx", "int8.cpu.onnx")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return make_run(tmp_path_factory.mktemp("saved"))


@pytest.fixture(scope="module")
def folder(run: RunDirectory) -> Path:
    saved = run.root.parent / "for polygraphy"
    assert check_parity(run, engines=["ort-cpu"], threads=1, save_polygraphy=saved)
    return saved


@pytest.fixture(scope="module")
def tool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tool]:
    """Types a command of Polygraphy's in a folder."""
    with polygraphy_tool(tmp_path_factory.mktemp("tool")) as command:

        def type_(line: str, where: Path) -> subprocess.CompletedProcess[str]:
            program, *arguments = shlex.split(line)
            assert program == "polygraphy"
            return subprocess.run(
                [*command, *arguments], cwd=where, capture_output=True, text=True, timeout=120, check=False
            )

        yield type_


def _lines(folder: Path, *starts: str) -> list[str]:
    lines = [command.line for command in saved_commands(folder)]
    return [line for line in lines if line.startswith(f"polygraphy {' '.join(starts)}")]


@pytest.mark.parametrize("graph", GRAPHS)
def test_polygraphy_finds_the_saved_outputs_in_onnx_runtime(
    graph: str, folder: Path, tool: Tool, tmp_path: Path
) -> None:
    (line,) = (line for line in _lines(folder, "run") if f"{graph}@ort-cpu" in line)
    done = tool(line, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Pass Rate: 100.00%" in done.stdout


def test_outputs_of_another_graph_are_not_taken_for_them(folder: Path, tool: Tool, tmp_path: Path) -> None:
    (line,) = (line for line in _lines(folder, "run") if "float.onnx@ort-cpu" in line)
    done = tool(line.replace("float.onnx@ort-cpu", "int8.onnx@ort-cpu"), tmp_path)
    assert done.returncode != 0
    assert "Pass Rate: 0.00%" in done.stdout


def test_a_layer_with_a_wrong_scale_is_not_taken_for_int8(
    folder: Path, run: RunDirectory, tool: Tool, tmp_path: Path
) -> None:
    (line,) = (line for line in _lines(folder, "run") if "int8.onnx@ort-cpu" in line)
    model = onnx.load(str(run.int8_onnx))
    quantizer = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
    scale = next(tensor for tensor in model.graph.initializer if tensor.name == quantizer.input[1])
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) / 4, scale.name))
    onnx.save_model(model, str(tmp_path / "wrong.onnx"))
    done = tool(line.replace(str(run.int8_onnx), str(tmp_path / "wrong.onnx")), tmp_path)
    assert done.returncode != 0
    assert "Mismatched outputs" in done.stdout


def test_the_loader_script_gives_the_same_inputs(folder: Path, tool: Tool, tmp_path: Path) -> None:
    (line,) = (line for line in _lines(folder, "run") if "float.onnx@ort-cpu" in line)
    inputs, loader = (shlex.quote(str(folder / name)) for name in ("inputs.json", "load_data.py"))
    assert inputs in line
    done = tool(line.replace(f"--load-inputs {inputs}", f"--data-loader-script {loader}"), tmp_path)
    assert "Pass Rate: 100.00%" in done.stdout, done.stdout + done.stderr


def test_a_graph_is_taken_apart_on_every_tensor_of_it(
    folder: Path, run: RunDirectory, tool: Tool, tmp_path: Path
) -> None:
    """As `debug reduce` goes on, which needs a package more: the first part that it tries is the whole."""
    (marked,) = (line for line in _lines(folder, "run") if "mark all" in line)
    (merged,), (reduce,) = _lines(folder, "data merge"), _lines(folder, "debug reduce")
    for line in (marked, merged):
        assert tool(line, tmp_path).returncode == 0
    shutil.copy(run.int8_onnx, tmp_path / "polygraphy_debug.onnx")
    done = tool(reduce.partition(" --check ")[2], tmp_path)
    assert "Pass Rate: 100.00%" in done.stdout, done.stdout + done.stderr
    assert {p.name for p in tmp_path.iterdir()} == {
        "layerwise.json", "layerwise-inputs.json", "polygraphy_debug.onnx",
    }  # fmt: skip


def test_what_lies_in_the_folder(folder: Path, run: RunDirectory) -> None:
    probe = load_artifact(run.artifact).probe
    assert probe is not None
    inputs = polygraphy.import_module("polygraphy.json").load_json(str(folder / "inputs.json"))
    assert len(inputs) > 1
    batch = run.load_recipe().runtime.batch
    raw_shapes = {}
    for name, values in probe.inputs.items():
        rows = np.asarray(values[:])
        assert np.array_equal(np.concatenate([feed[name] for feed in inputs]), rows)
        assert (folder / "raw" / f"{name}.bin").read_bytes() == rows[:batch].tobytes()
        raw_shapes[name] = "x".join(map(str, rows[:batch].shape))
    (line,) = (c.line for c in saved_commands(folder) if c.line.startswith("trtexec"))
    shapes = next(w for w in shlex.split(line) if w.startswith("--shapes=")).removeprefix("--shapes=")
    assert dict(part.split(":") for part in shapes.split(",")) == raw_shapes
    assert line in (folder / "commands.txt").read_text()


def test_a_folder_of_its_own_is_replaced_whole(folder: Path, run: RunDirectory, tmp_path: Path) -> None:
    old = Path(shutil.copytree(folder, tmp_path / "old"))
    (old / "outputs/float.onnx@ort-cpu.json").write_text("{}")
    (old / "__pycache__").mkdir(exist_ok=True)
    (old / "__pycache__/load_data.cpython-311.pyc").touch()
    check_parity(run, engines=["ort-cpu"], threads=1, save_polygraphy=str(old))
    kept = {p.relative_to(folder) for p in folder.rglob("*") if "__pycache__" not in p.parts}
    assert {p.relative_to(old) for p in old.rglob("*")} == kept
    assert (old / "outputs/float.onnx@ort-cpu.json").stat().st_size > 100


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be measured."""

    def measure(*_: Any) -> None:
        raise AssertionError("measured before it was refused")

    monkeypatch.setattr(stage, "measure_comparisons", measure)


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("what", ["other", "added", "file", "link", "no-folder", "missing"])
def test_what_is_not_its_own_is_refused_before_anything_is_measured(
    what: str, folder: Path, run: RunDirectory, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    if what == "other":
        target.mkdir()
        (target / "notes.txt").touch()
    elif what == "added":
        shutil.copytree(folder, target)
        (target / "outputs" / "mine.json").touch()
    elif what == "link":
        target.symlink_to(folder)
    elif what != "missing":
        target.touch()
    place = target / "inside" if what in {"no-folder", "missing"} else target
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match="there is no folder" if what == "missing" else "--save-polygraphy"):
        check_parity(run, engines=["ort-cpu"], save_polygraphy=place)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("unmeasured")
def test_without_polygraphy_nothing_is_measured(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(polygraphy.metadata, "version", missing)
    with pytest.raises(BackendUnavailable, match="--save-polygraphy needs Polygraphy") as caught:
        check_parity(run, engines=["ort-cpu"], save_polygraphy=tmp_path / "new")
    assert caught.value.hint.startswith("pip install 'polygraphy>=")


def test_on_a_full_disk_the_old_folder_stays(
    folder: Path, run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = Path(shutil.copytree(folder, tmp_path / "old"))
    before = {p: p.read_bytes() for p in old.rglob("*") if p.is_file()}

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(probe_folder, "save_results", full)
    with pytest.raises(ResourceError, match="No space left"):
        check_parity(run, engines=["ort-cpu"], threads=1, save_polygraphy=old)
    assert {p: p.read_bytes() for p in old.rglob("*") if p.is_file()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["old"]


def test_commands_of_another_folder_are_not_read(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is missing") as caught:
        saved_commands(tmp_path)
    assert "--save-polygraphy" in caught.value.hint
    (tmp_path / "manifest.json").write_text('{"schema": "another"}')
    with pytest.raises(ArtifactError, match=r"schema: .*got 'another'"):
        saved_commands(tmp_path)
