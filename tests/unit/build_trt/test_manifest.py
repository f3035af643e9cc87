"""The engine's manifest: its key, its files, and when it is stale."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gacq_deploy.backends.trt.deserialized import Expected
from gacq_deploy.backends.trt.library import Device
from gacq_deploy.build_trt.manifest import (
    DeviceRecord,
    EngineInputs,
    engines_of,
    find_engine,
    graph_digest,
    make_newest,
    read_engine,
)
from gacq_deploy.build_trt.open import LocatedEngine
from gacq_deploy.errors import ArtifactError
from gacq_deploy.run_directory import RunDirectory
from tests.support.artifacts.engine_folder import made_from, written

DEVICE = DeviceRecord(name="GPU", compute_capability="8.6", driver=13000)


def export(sha256: str = "a" * 64) -> Any:
    """Return what the manifest asks of an export record."""
    return SimpleNamespace(
        files={"int8.onnx": SimpleNamespace(sha256=sha256), "float.onnx": SimpleNamespace(sha256="f")}
    )


def inputs(**changes: Any) -> EngineInputs:
    return made_from(changes.pop("graph_sha256", graph_digest(export(), "int8.onnx")), **changes)


@pytest.mark.parametrize(
    "change",
    [
        {"graph_sha256": "other"}, {"graph": "float.onnx"}, {"float_type": "float32"}, {"version": "1.7.2.0"},
        {"device": DEVICE}, {"options": {"opt_level": 5}}, {"options": {"compute_capabilities": ("8.6",)}},
        {"options": {"refit": True}},
    ],
)  # fmt: skip
def test_whatever_changes_the_plan_changes_the_key(change: dict[str, Any]) -> None:
    assert inputs(**change).key != inputs().key


def test_where_timings_are_kept_does_not() -> None:
    assert inputs(options={"timing_cache": "/elsewhere"}).key == inputs().key
    assert len(inputs().key) == 16


def test_a_manifest_comes_back(tmp_path: Path) -> None:
    folder = written(tmp_path, inputs())
    record = read_engine(folder, "")
    assert record.inputs == inputs()
    assert record.is_int8
    assert record.label == "tensorrt-rtx-1.7.1.116"
    assert "licence" in record.licence
    assert list(engines_of(RunDirectory(tmp_path))) == [(folder, record)]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "engine.plan").write_bytes(b"nalp"), "was altered"),
        (lambda folder: (folder / "engine.plan").write_bytes(b"pl"), "has 2 bytes"),
        (lambda folder: (folder / "layers.json").unlink(), "missing"),
        (lambda folder: _edit(folder, peak_mb=7), "was altered"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "no object"),
        (lambda folder: (folder / "manifest.json").unlink(), "missing"),
    ],
)
def test_damage_is_found(tmp_path: Path, damage: Any, message: str) -> None:
    folder = written(tmp_path, inputs())
    damage(folder)
    with pytest.raises(ArtifactError, match=message):
        read_engine(folder, "")


def _edit(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_copied_engine_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path, inputs())
    moved = folder.rename(folder.with_name("0" * 16))
    with pytest.raises(ArtifactError, match="moved or copied"):
        read_engine(moved, "")


def test_the_engine_of_the_graph_that_is_there_is_found(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    with pytest.raises(ArtifactError, match="holds no tensorrt-rtx engine"):
        find_engine(run, export(), "tensorrt-rtx")
    folder = written(tmp_path, inputs())
    assert find_engine(run, export(), "tensorrt-rtx")[0] == folder
    with pytest.raises(ArtifactError, match="holds no tensorrt engine"):
        find_engine(run, export(), "tensorrt")
    with pytest.raises(ArtifactError, match=r"holds no .* engine of float\.onnx"):
        find_engine(run, export(), "tensorrt-rtx", graph="float.onnx")
    changed = export("b" * 64)
    assert "int8.onnx changed" in str(read_engine(folder, "").why_stale(changed))
    with pytest.raises(ArtifactError, match="stale"):
        find_engine(run, changed, "tensorrt-rtx")


def test_an_engine_that_failed_its_gate_hides_no_good_one(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    good = written(tmp_path, inputs())
    failed = written(tmp_path, inputs(options={"opt_level": 1}), share=0.3)
    make_newest(run, failed)
    assert find_engine(run, export(), "tensorrt-rtx")[0] == good
    shutil.rmtree(good)
    assert find_engine(run, export(), "tensorrt-rtx")[0] == failed, "its gate says why"


def test_which_engine_runs_is_written_down_and_copied_with_the_run(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    folders = [written(run.root, inputs(options={"opt_level": level})) for level in (1, 2, 3)]
    for folder in (folders[2], folders[0], folders[1], folders[0]):
        make_newest(run, folder)
    assert [folder for folder, _ in engines_of(run)] == [folders[0], folders[1], folders[2]]
    copied = RunDirectory(Path(shutil.copytree(run.root, tmp_path / "copy")))
    # as a tool leaves them that keeps no times
    for number, manifest in enumerate(sorted(copied.engines.glob("*/manifest.json"))):
        os.utime(manifest, (1e9 + number, 1e9 + number))
    assert find_engine(copied, export(), "tensorrt-rtx")[0].name == folders[0].name
    shutil.rmtree(copied.engines / folders[0].name)
    assert find_engine(copied, export(), "tensorrt-rtx")[0].name == folders[1].name


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": "x", "newest_first": []}', '{"newest_first": [1]}'])
def test_a_damaged_order_is_refused(tmp_path: Path, text: str) -> None:
    run = RunDirectory(tmp_path)
    written(tmp_path, inputs())
    (run.engines / "order.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"order") as caught:
        list(engines_of(run))
    assert "build-trt" in caught.value.hint


@pytest.mark.parametrize(
    ("change", "targets"),
    [
        ({}, None),
        ({"device": DEVICE}, ("8.6",)),
        ({"device": DEVICE, "options": {"hw_compat": True}}, None),
        ({"options": {"compute_capabilities": ("7.5", "8.9")}}, ("7.5", "8.9")),
    ],
)
def test_what_the_runtime_expects(
    tmp_path: Path, change: dict[str, Any], targets: tuple[str, ...] | None
) -> None:
    record = read_engine(written(tmp_path, inputs(**change)), "")
    assert record.expected == Expected("tensorrt-rtx", "1.7.1.116", targets)


@pytest.mark.parametrize(
    ("options", "capability", "runs"),
    [
        ({}, "9.0", True),
        ({}, None, False),
        ({"compute_capabilities": ("8.6", "8.9")}, "8.9", True),
        ({"compute_capabilities": ("8.6", "8.9")}, "9.0", False),
        ({"strip": True}, "8.6", False),
    ],
)
def test_where_a_plan_may_run(
    tmp_path: Path, options: dict[str, Any], capability: str | None, runs: bool
) -> None:
    record = read_engine(written(tmp_path, inputs(options=options)), "")
    device = None if capability is None else Device("GPU", capability, 13000)
    assert record.runs_on(device) is runs


def test_a_plan_without_weights_does_not_open(tmp_path: Path) -> None:
    folder = written(tmp_path, inputs(options={"strip": True}))
    with pytest.raises(ArtifactError, match="holds no weights"):
        LocatedEngine(folder, read_engine(folder, "")).open()
