from __future__ import annotations

import errno
import gc
import json
import os
import resource
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import ref

import numpy as np
import pytest
import yaml
from onnx import helper, numpy_helper
from torch import nn

from gacq_deploy.artifact.artifact import load_artifact
from gacq_deploy.engines.open import open_engine
from gacq_deploy.errors import ArtifactError, ExportError, ResourceError
from gacq_deploy.export.float_graph import graph
from gacq_deploy.export.float_graph.graph import float_graph
from gacq_deploy.export.record import ExportRecord, load_export
from gacq_deploy.export.stage import EXPORT_STAGES, export_onnx
from gacq_deploy.models import source
from gacq_deploy.models.base import Denoiser
from gacq_deploy.models.source import load_float_denoiser
from gacq_deploy.progress import SilentReporter
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.spec import TensorParams
from gacq_deploy.storage.digests import digest_file
from gacq_deploy.storage.files import TEMP_PREFIX
from gacq_deploy.storage.lock import lock_directory
from tests.support.models.tiny import save_model, tiny_run, tiny_unet, with_params


class Recorder(SilentReporter):
    """Remembers what a stage said."""

    def __init__(self) -> None:
        self.units, self.total = 0, 0
        self.notes: list[str] = []

    def stage(self, name: str, total: int, costs: Sequence[float] = ()) -> None:
        self.total += total

    def advance(self, n: int = 1, **values: float) -> None:
        self.units += n

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDirectory, ExportRecord, Recorder]:
    directory = tiny_run(tmp_path_factory.mktemp("export"))
    report = Recorder()
    return directory, export_onnx(directory, report=report), report


@pytest.fixture
def run(finished: tuple[RunDirectory, ExportRecord, Recorder], tmp_path: Path) -> RunDirectory:
    """A private copy of a finished export; the model stays where it is."""
    shutil.copytree(finished[0].root, tmp_path / "run")
    return RunDirectory(tmp_path / "run")


def _state(directory: RunDirectory) -> dict[str, tuple[str, int]]:
    return {p.name: (digest_file(p), p.stat().st_mtime_ns) for p in sorted(directory.onnx.iterdir())}


def test_record_says_what_is_on_disk(finished: tuple[RunDirectory, ExportRecord, Recorder]) -> None:
    directory, record, report = finished
    assert record.graphs == ("float.onnx", "int8.onnx", "int8.cpu.onnx")
    assert {p.name for p in directory.onnx.iterdir()} == {*record.files, "manifest.json"}
    assert load_export(directory) == record
    artifact = load_artifact(directory.artifact)
    assert record.artifact_sha256 == artifact.manifest_digest
    assert record.recipe_sha256 == directory.load_recipe().digest
    assert record.quantized_sites == {"int8.onnx": 78, "int8.cpu.onnx": len(artifact.plan)}
    assert {(c.file, c.target) for c in record.lint} == {
        ("int8.onnx", "tensorrt"),
        ("int8.onnx", "openvino"),
        ("int8.cpu.onnx", "ort-cpu"),
    }
    assert all((c.error, c.warn) == (0, 0) for c in record.lint)
    assert record.self_check["float.onnx"] < 1e-5
    assert 0.001 < record.self_check["int8.onnx"] < 0.2
    assert report.units == report.total


def test_files_are_small_and_name_nobodys_folders(
    finished: tuple[RunDirectory, ExportRecord, Recorder],
) -> None:
    directory, _, _ = finished
    sizes = [p.stat().st_size for p in (directory.float_onnx, directory.int8_onnx)]
    assert sizes[1] < sizes[0]
    for path in directory.onnx.iterdir():
        assert str(Path.cwd()).encode() not in path.read_bytes()
        assert b"site-packages" not in path.read_bytes()


@pytest.mark.parametrize("name", ["int8.onnx", "int8.cpu.onnx"])
def test_graphs_load_in_openvino_and_onnxruntime(
    finished: tuple[RunDirectory, ExportRecord, Recorder], name: str
) -> None:
    directory, _, _ = finished
    probe = load_artifact(directory.artifact).probe
    assert probe is not None
    for engine_name in ("ort-cpu", "openvino"):
        with open_engine(engine_name, directory.onnx / name, threads=1) as engine:
            output = engine.run(probe.inputs)["output"]
        distance = np.linalg.norm(output - probe.outputs["float"]) / np.linalg.norm(probe.outputs["float"])
        assert 0 < distance < 0.2


def test_again_does_nothing(run: RunDirectory) -> None:
    before, report = _state(run), Recorder()
    export_onnx(run, targets=["ort-cpu"], report=report)
    assert _state(run) == before
    assert report.notes == ["export is already done"]
    assert report.total == 0


@pytest.mark.parametrize("name", ["float.onnx", "int8.onnx", "int8.cpu.onnx", "manifest.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "flipped"])
def test_damage_is_found_before_parsing(run: RunDirectory, name: str, damage: str) -> None:
    path = run.onnx / name
    data = path.read_bytes()
    changed = {
        "empty": b"",
        "truncated": data[:-100],
        "flipped": data[:300] + bytes([data[300] ^ 1]) + data[301:],
    }
    path.unlink()
    if damage != "missing":
        path.write_bytes(changed[damage])
    with pytest.raises(ArtifactError) as raised:
        load_export(run)
    assert "gacq-deploy export --onnx" in raised.value.hint


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("schema", "gacq-deploy/export/9", "not an export manifest of this version"),
        ("opset", 21, "was altered"),
    ],
)
def test_edited_manifests_are_refused(run: RunDirectory, key: str, value: object, message: str) -> None:
    document = json.loads(run.onnx_manifest.read_bytes())
    run.onnx_manifest.write_text(json.dumps(document | {key: value}))
    with pytest.raises(ArtifactError, match=message):
        load_export(run)


def test_foreign_files_in_the_manifest_are_refused(
    run: RunDirectory, finished: tuple[RunDirectory, ExportRecord, Recorder]
) -> None:
    record = finished[1]
    files = record.files | {"../recipe.yaml": record.files["float.onnx"]}
    record.model_copy(update={"files": files}).save(run.onnx_manifest)
    with pytest.raises(ArtifactError, match="foreign file"):
        load_export(run)


def test_another_artifact_makes_the_export_stale(run: RunDirectory) -> None:
    artifact = load_artifact(run.artifact)
    site = artifact.plan.of_role("input")[0].site
    scale = (artifact.params[site].scale * np.float32(1.5)).reshape(())
    with_params(artifact, {str(site): TensorParams(scale)}).save(run.artifact)
    with pytest.raises(ArtifactError, match="is stale"):
        load_export(run)


def test_a_missing_artifact_names_the_remedy(run: RunDirectory) -> None:
    shutil.rmtree(run.artifact)
    with pytest.raises(ArtifactError) as raised:
        load_export(run)
    assert "gacq-deploy calibrate" in raised.value.hint


def test_another_recipe_than_the_calibrated_one_is_refused(run: RunDirectory) -> None:
    document = yaml.safe_load(run.recipe_path.read_text())
    document["samples"]["steps"] += 1
    document["export"]["opset"] = 21
    run.recipe_path.write_text(yaml.safe_dump(document))
    before = _state(run)
    with pytest.raises(ArtifactError, match=r"recipe\.yaml differs in samples"):
        export_onnx(run)
    assert _state(run) == before


def test_another_models_weights_are_refused(run: RunDirectory, tmp_path: Path) -> None:
    recipe = yaml.safe_load(run.recipe_path.read_text())
    save_model(tiny_unet(seed=1), tmp_path / "other")
    recipe["model"]["source"] = str(tmp_path / "other")
    recipe["export"]["opset"] = 19
    run.recipe_path.write_text(yaml.safe_dump(recipe))
    artifact = load_artifact(run.artifact)
    learned = dict(artifact.recipe) | {"model": run.load_recipe().document()["model"]}
    replace(artifact, recipe=learned).save(run.artifact)
    before = _state(run)
    with pytest.raises(ArtifactError, match="has weights"):
        export_onnx(run)
    assert _state(run) == before


def test_a_busy_directory_is_refused(run: RunDirectory) -> None:
    with lock_directory(run.root), pytest.raises(ResourceError, match=str(os.getpid())):
        export_onnx(run)


@pytest.mark.slow
def test_targets_and_settings_decide_what_is_written(run: RunDirectory) -> None:
    (run.root / f"{TEMP_PREFIX}1-onnx").mkdir()
    (run.root / f"{TEMP_PREFIX}1-onnx" / "float.onnx").write_bytes(b"of a killed export")
    document = yaml.safe_load(run.recipe_path.read_text())
    document["export"]["opset"] = 21
    run.recipe_path.write_text(yaml.safe_dump(document))
    record = export_onnx(run, targets=["tensorrt"])
    assert record.opset == 21
    assert record.graphs == ("float.onnx", "int8.onnx")
    assert {p.name for p in run.onnx.iterdir()} == {"float.onnx", "int8.onnx", "manifest.json"}
    assert not list(run.root.glob(f"{TEMP_PREFIX}*"))


@pytest.mark.slow
def test_another_target_keeps_the_graphs_of_the_same_making(run: RunDirectory) -> None:
    (run.onnx / "int8.plan").write_bytes(b"an engine built beside its graph")
    complete = _state(run)
    record = _forget_graph(run, "int8.cpu.onnx")
    assert record.graphs == ("float.onnx", "int8.onnx")
    assert export_onnx(run, targets=["ort-cpu"]).graphs == ("float.onnx", "int8.onnx", "int8.cpu.onnx")
    assert {name: digest for name, (digest, _) in _state(run).items()} == {
        name: digest for name, (digest, _) in complete.items()
    }
    assert load_export(run).graphs == ("float.onnx", "int8.onnx", "int8.cpu.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("graph", ["float.onnx", "int8.cpu.onnx", "manifest.json"])
def test_a_failed_rename_leaves_the_earlier_export(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, graph: str
) -> None:
    (run.onnx / "int8.plan").write_bytes(b"an engine built beside its graph")
    _forget_graph(run, "int8.cpu.onnx")
    before, rename = _state(run), Path.rename

    def full(source: Path, target: Path) -> Path:
        if source.parent.name.startswith(TEMP_PREFIX) and source.name == graph:
            raise OSError(errno.ENOSPC, "No space left on device")
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(ResourceError, match="No space left"):
        export_onnx(run, targets=["ort-cpu"])
    assert _state(run) == before
    assert load_export(run).graphs == ("float.onnx", "int8.onnx")
    assert not list(run.root.glob(f"{TEMP_PREFIX}*"))


def _forget_graph(run: RunDirectory, graph: str) -> ExportRecord:
    """Turn the export into what one for fewer targets leaves."""
    record = ExportRecord.model_validate(
        {k: v for k, v in json.loads(run.onnx_manifest.read_bytes()).items() if k != "digest"}
    )
    (run.onnx / graph).unlink(missing_ok=True)
    smaller = record.model_copy(update={"files": {k: v for k, v in record.files.items() if k != graph}})
    smaller.save(run.onnx_manifest)
    return load_export(run)


@contextmanager
def _largest_file(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.slow
def test_failures_leave_the_last_good_export(run: RunDirectory) -> None:
    document = yaml.safe_load(run.recipe_path.read_text())
    document["export"]["opset"] = 21
    run.recipe_path.write_text(yaml.safe_dump(document))
    float_graph(
        load_float_denoiser(run.load_recipe().model), opset=21
    )  # kept, for a file of its own has no room below
    before = _state(run)
    with _largest_file(200_000), pytest.raises(ResourceError, match="No space left"):
        export_onnx(run)
    assert _state(run) == before
    assert not list(run.root.glob(f"{TEMP_PREFIX}*"))

    artifact = load_artifact(run.artifact)
    assert artifact.probe is not None
    wrong = {"float": artifact.probe.outputs["float"] * np.float32(1.001)}
    replace(artifact, probe=replace(artifact.probe, outputs=wrong)).save(run.artifact)
    with pytest.raises(
        ExportError, match=r"departs from torch by 9\.99e-04 .*the recorded answers are not this model's"
    ):
        export_onnx(run)
    assert _state(run) == before


@pytest.mark.slow
def test_a_function_that_the_exporter_changed_is_refused(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = graph.weightless_graph

    def bounded(denoiser: Denoiser, **settings: Any) -> graph.FloatGraph:
        """As an optimizer that deems a bound of 6 idle would, the other way round."""
        captured = made(denoiser, **settings)
        model = captured.model
        for node in model.graph.node:
            node.input[:] = ["bounded" if name == "sample" else name for name in node.input]
        stored = (numpy_helper.from_array(np.float32(sign * 6), f"bound{sign}") for sign in (-1, 1))
        model.graph.initializer.extend(stored)
        model.graph.node.insert(
            0, helper.make_node("Clip", ["sample", "bound-1", "bound1"], ["bounded"], "clip")
        )
        return captured

    monkeypatch.setattr(graph, "weightless_graph", bounded)
    document = yaml.safe_load(run.recipe_path.read_text())
    document["export"]["external_data_mb"] = 1
    run.recipe_path.write_text(yaml.safe_dump(document))
    before = _state(run)
    with pytest.raises(
        ExportError, match=r"on a recorded state times 2\^3; .* in module 'conv_in', at node "
    ):
        export_onnx(run)
    assert _state(run) == before


@pytest.mark.parametrize("refers_to_itself", [False, True])
def test_no_weight_of_the_model_is_in_memory_while_graphs_are_quantized(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, refers_to_itself: bool
) -> None:
    weights: list[ref[nn.Parameter]] = []
    alive: dict[str, int] = {}

    def load(*names: Any, **settings: Any) -> Denoiser:
        denoiser = load_float_denoiser(*names, **settings)
        weights.extend(ref(parameter) for parameter in denoiser.module.parameters())
        if refers_to_itself:
            vars(denoiser.module)["kept"] = [denoiser.module]
        return denoiser

    class Watching(SilentReporter):
        def stage(self, name: str, total: int, costs: Sequence[float] = ()) -> None:
            alive[name] = sum(weight() is not None for weight in weights)

    monkeypatch.setattr(source, "load_float_denoiser", load)
    shutil.rmtree(run.onnx)
    gc.disable()
    try:
        export_onnx(run, report=Watching())
    finally:
        gc.enable()
    assert [alive[name] > 0 for name in EXPORT_STAGES] == [False, True, False, False]
    assert len(weights) > 50


def test_an_artifact_without_probe_is_refused_before_any_work(run: RunDirectory) -> None:
    replace(load_artifact(run.artifact), probe=None).save(run.artifact)
    before = _state(run)
    with pytest.raises(ArtifactError, match="no probe"):
        export_onnx(run)
    assert _state(run) == before
