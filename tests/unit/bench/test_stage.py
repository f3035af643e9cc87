from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from gacq_deploy.artifact.call import CallRecord, StateRecord, TimestepRecord
from gacq_deploy.bench import load_bench, run_bench
from gacq_deploy.bench.measure import BenchSettings, Feed
from gacq_deploy.bench.stage import model_feeds
from gacq_deploy.errors import ArtifactError, BackendUnavailable, UsageError
from gacq_deploy.export.stage import export_onnx
from gacq_deploy.run_directory import RunDirectory
from gacq_deploy.storage.digests import digest_file
from tests.support.models.tiny import tiny_denoiser, tiny_run

QUICK = BenchSettings(batches=(1, 2), repeats=1, turn_seconds=0.001)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    directory = tiny_run(tmp_path_factory.mktemp("bench"))
    export_onnx(directory)
    return directory


@pytest.mark.slow
def test_the_exported_graphs_are_measured(run: RunDirectory) -> None:
    report = run_bench(run, settings=QUICK)
    assert load_bench(run.bench_json) == report
    assert [c.name for c in report.candidates] == [
        "ort-cpu/float.onnx",
        "ort-cpu/int8.cpu.onnx",
        "openvino/float.onnx",
        "openvino/int8.onnx",
    ]
    assert len(report.ratios) == 3 * 2
    assert report.subject["files"]["int8.cpu.onnx"] == digest_file(run.cpu_onnx)
    sizes = {c.file: c.file_bytes for c in report.candidates}
    assert sizes["int8.onnx"] == run.int8_onnx.stat().st_size
    for candidate in report.candidates:
        assert (candidate.kernels is None) == (candidate.file == "float.onnx")
        if candidate.kernels:
            # every planned convolution and linear layer: nothing fell back to float in silence
            assert candidate.kernels.float_modules == ()
            assert candidate.kernels.planned > 10


@pytest.mark.slow
def test_an_altered_graph_is_not_measured(run: RunDirectory, tmp_path: Path) -> None:
    directory = RunDirectory(
        shutil.copytree(run.root, tmp_path / "run", ignore=shutil.ignore_patterns("bench*"))
    )
    data = bytearray(directory.cpu_onnx.read_bytes())
    data[len(data) // 2] ^= 1
    directory.cpu_onnx.write_bytes(data)
    with pytest.raises(ArtifactError, match="altered"):
        run_bench(directory, settings=QUICK)
    assert not directory.bench_json.exists()


@pytest.mark.slow
def test_engines_that_cannot_be_measured_are_refused(run: RunDirectory) -> None:
    with pytest.raises(UsageError, match="'abacus'"):
        run_bench(run, engines=["abacus"])
    with pytest.raises(ArtifactError, match="holds no tensorrt engine"):
        run_bench(run, engines=["tensorrt"])
    with pytest.raises(BackendUnavailable, match="CUDA"):
        run_bench(run, engines=["ort-cuda"], settings=QUICK)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError):
        run_bench(RunDirectory(tmp_path / "none"), settings=QUICK)


def test_states_of_any_rank_and_float_timesteps_are_fed() -> None:
    text = {"text": {"dtype": "float32", "shape": [7, 5]}, "mask": {"dtype": "bool", "shape": [7]}}
    call = CallRecord(state=StateRecord(shape=(6, 64)), timestep=TimestepRecord(dtype="float32"))
    changes = {"sample_shape": (6, 64), "conditioning": text, "call": call}
    assert model_feeds(tiny_denoiser().record.model_copy(update=changes)) == (
        Feed("sample", "float32", (6, 64)),
        Feed("timestep", "float32", (), 1000),
        Feed("text", "float32", (7, 5), 1),
        Feed("mask", "bool", (7,), 1),
    )
