from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gacq_deploy.bench.measure import BenchGraph, BenchSettings, Feed, WorkerProcess, measure_graphs
from gacq_deploy.bench.report import BenchReport, Spread, load_bench
from gacq_deploy.bench.stage import describe_host, plan_graphs
from gacq_deploy.bench.worker import peak_memory
from gacq_deploy.errors import ArtifactError, BackendUnavailable, EngineError, ResourceError, UsageError
from tests.support.graphs.onnx_graphs import CLASSES, SAMPLE_SHAPE, denoiser_graph, save_external
from tests.support.graphs.saturating import cap_openvino

FEEDS = (
    Feed("sample", "float32", SAMPLE_SHAPE),
    Feed("timestep", "int64", (), 1000),
    Feed("class_labels", "int64", (), CLASSES),
)
QUICK = BenchSettings(batches=(1, 3), threads=1, repeats=2, turn_seconds=0.002)


@pytest.fixture
def graphs(tmp_path: Path) -> tuple[BenchGraph, BenchGraph]:
    (tmp_path / "float.onnx").write_bytes(denoiser_graph().SerializeToString())
    (tmp_path / "int8.onnx").write_bytes(denoiser_graph(quantized=True).SerializeToString())
    return (
        BenchGraph("ort-cpu", tmp_path / "float.onnx"),
        BenchGraph("ort-cpu", tmp_path / "int8.onnx", ("conv", "linear", "not_there")),
    )


def test_two_graphs_are_measured_and_compared(graphs: tuple[BenchGraph, BenchGraph]) -> None:
    measured = measure_graphs(graphs, [("ort-cpu/int8.onnx", "ort-cpu/float.onnx")], FEEDS, QUICK)
    plain, int8 = measured.candidates
    assert (plain.name, int8.name) == ("ort-cpu/float.onnx", "ort-cpu/int8.onnx")
    assert plain.label.endswith("/CPUExecutionProvider")
    assert plain.file_bytes == graphs[0].path.stat().st_size
    assert plain.kernels is None
    assert int8.kernels is not None
    assert (int8.kernels.planned, int8.kernels.integer, int8.kernels.float_modules) == (3, 2, ("not_there",))
    assert int8.kernels.share == pytest.approx(2 / 3)
    for candidate in measured.candidates:
        assert [t.batch for t in candidate.timings] == [1, 3]
        assert candidate.load_seconds > 0
        assert candidate.loaded_bytes > 0
        assert candidate.timings[1].peak_bytes >= candidate.timings[0].peak_bytes >= candidate.loaded_bytes
        for timing in candidate.timings:
            assert 0 < timing.wall_ms.low <= timing.wall_ms.median <= timing.wall_ms.high < 1000
            assert 0 < timing.cpu_ms.median < 1000
    assert [(r.batch, r.candidate, r.baseline) for r in measured.ratios] == [
        (1, "ort-cpu/int8.onnx", "ort-cpu/float.onnx"),
        (3, "ort-cpu/int8.onnx", "ort-cpu/float.onnx"),
    ]
    assert all(0.01 < r.cpu.median < 100 for r in measured.ratios)
    assert measured.skipped == {}


def test_weights_beside_the_graph_count_as_its_size(tmp_path: Path) -> None:
    data = save_external(denoiser_graph(), tmp_path / "float.onnx")
    graph = BenchGraph("ort-cpu", tmp_path / "float.onnx")
    assert graph.bytes == data.stat().st_size + (tmp_path / "float.onnx").stat().st_size


def test_an_optional_engine_that_is_missing_is_skipped_with_its_reason(
    graphs: tuple[BenchGraph, BenchGraph],
) -> None:
    cuda = BenchGraph("ort-cuda", graphs[1].path)
    pairs = [("ort-cuda/int8.onnx", "ort-cpu/float.onnx")]
    measured = measure_graphs((graphs[0], cuda), pairs, FEEDS, QUICK, optional=frozenset({"ort-cuda"}))
    assert [c.name for c in measured.candidates] == ["ort-cpu/float.onnx"]
    assert measured.ratios == ()
    assert "CUDAExecutionProvider" in measured.skipped["ort-cuda/int8.onnx"]
    assert "ort-cuda/int8.onnx" not in measured.skipped["ort-cuda/int8.onnx"], "the key says it"
    with pytest.raises(BackendUnavailable) as caught:
        measure_graphs((cuda,), [], FEEDS, QUICK)
    assert "gacq-deploy[gpu]" in caught.value.hint


def test_an_error_in_the_process_keeps_its_class_and_names_the_graph(
    graphs: tuple[BenchGraph, BenchGraph],
) -> None:
    graphs[0].path.write_bytes(b"not a graph")
    with pytest.raises(ArtifactError, match=r"ort-cpu/float\.onnx: .*truncated or not an ONNX model"):
        measure_graphs(graphs[:1], [], FEEDS, QUICK)


def test_inputs_that_do_not_fit_are_an_engine_error(graphs: tuple[BenchGraph, BenchGraph]) -> None:
    with pytest.raises(EngineError, match="class_labels"):
        measure_graphs(graphs[:1], [], FEEDS[:2], QUICK)


@pytest.mark.parametrize("gone", [False, True])
def test_a_killed_process_is_a_resource_error(gone: bool) -> None:
    with WorkerProcess("ort-cpu/float.onnx", 1) as worker:
        os.kill(worker._process.pid, signal.SIGKILL)
        if gone:  # the command cannot even be sent
            worker._process.wait()
        with pytest.raises(ResourceError, match="signal 9"):
            worker.ask("kernels")


def test_a_process_that_dies_tells_its_last_words() -> None:
    message = pytest.raises(EngineError, match="code 1: KeyError: 'nonsense'")
    with WorkerProcess("ort-cpu/float.onnx", 1) as worker, message:
        worker.ask("nonsense")


def test_no_process_survives_an_error(
    graphs: tuple[BenchGraph, BenchGraph], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[str]] = []

    class Recorded(subprocess.Popen[str]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Recorded)
    graphs[1].path.write_bytes(b"broken")
    with pytest.raises(ArtifactError):
        measure_graphs(graphs, [], FEEDS, QUICK)
    assert len(started) == 2
    assert all(process.poll() is not None for process in started)


@pytest.mark.parametrize(
    "values", [{"batches": ()}, {"batches": (0,)}, {"batches": (2, 2)}, {"threads": 0}, {"repeats": 0}]
)
def test_settings_out_of_range_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        BenchSettings(**values)


def test_spread() -> None:
    spread = Spread.of([4.0, 1.0, 2.0, 3.0, 5.0])
    assert (spread.low, spread.q1, spread.median, spread.q3, spread.high) == (1, 2, 3, 4, 5)


def test_peak_memory_is_the_processs_own() -> None:
    """A child of a large parent starts small: its counter must not inherit the parent's peak."""
    ballast = bytearray(os.urandom(1 << 20) * 200)
    code = "from gacq_deploy.bench.worker import peak_memory; print(peak_memory())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) < peak_memory() - len(ballast) // 2


def test_every_int8_graph_is_compared_with_ort_float_and_its_own_float(tmp_path: Path) -> None:
    available = ("float.onnx", "int8.onnx", "int8.cpu.onnx")
    (tmp_path / "int8.onnx").write_bytes(denoiser_graph(quantized=True).SerializeToString())
    graphs, pairs, absent = plan_graphs(tmp_path, ("ort-cpu", "openvino"), available, ("a", "b"))
    assert [(g.name, g.planned) for g in graphs] == [
        ("ort-cpu/float.onnx", ()),
        ("ort-cpu/int8.cpu.onnx", ("a", "b")),
        ("openvino/float.onnx", ()),
        ("openvino/int8.onnx", ("a", "b")),
    ]
    assert pairs == (
        ("ort-cpu/int8.cpu.onnx", "ort-cpu/float.onnx"),
        ("openvino/int8.onnx", "ort-cpu/float.onnx"),
        ("openvino/int8.onnx", "openvino/float.onnx"),
    )
    assert absent == {}


def test_an_engine_that_would_be_wrong_here_is_told_and_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cap_openvino(monkeypatch)
    available = ("float.onnx", "int8.onnx", "int8.cpu.onnx")
    (tmp_path / "int8.onnx").write_bytes(denoiser_graph(quantized=True, bits=8).SerializeToString())
    graphs, pairs, absent = plan_graphs(tmp_path, ("ort-cpu", "openvino"), available, ())
    assert [g.name for g in graphs] == ["ort-cpu/float.onnx", "ort-cpu/int8.cpu.onnx"]
    assert len(pairs) == 1
    assert "openvino would compute this graph wrong here" in absent["openvino/int8.onnx"]


def test_a_graph_that_was_not_exported_is_told(tmp_path: Path) -> None:
    graphs, pairs, absent = plan_graphs(
        tmp_path, ("ort-cpu", "openvino"), ("float.onnx", "int8.cpu.onnx"), ()
    )
    assert [g.name for g in graphs] == ["ort-cpu/float.onnx", "ort-cpu/int8.cpu.onnx"]
    assert len(pairs) == 1
    assert "export --onnx" in absent["openvino/int8.onnx"]


def test_the_report_survives_the_disk(graphs: tuple[BenchGraph, BenchGraph], tmp_path: Path) -> None:
    measured = measure_graphs(graphs, [("ort-cpu/int8.onnx", "ort-cpu/float.onnx")], FEEDS, QUICK)
    report = BenchReport(
        subject={"files": {}},
        host=describe_host(),
        threads=1,
        repeats=2,
        batches=(1, 3),
        candidates=measured.candidates,
        ratios=measured.ratios,
        skipped={},
    )
    report.save(tmp_path / "bench.json")
    assert load_bench(tmp_path / "bench.json") == report
    document = json.loads((tmp_path / "bench.json").read_text())
    (tmp_path / "altered.json").write_text(json.dumps({**document, "threads": 2}))
    with pytest.raises(ArtifactError, match="altered"):
        load_bench(tmp_path / "altered.json")
    assert report.ratio("ort-cpu/int8.onnx", "ort-cpu/float.onnx", 3) == report.ratios[1]
    assert report.ratio("ort-cpu/int8.onnx", "ort-cpu/float.onnx", 99) is None


@pytest.mark.parametrize("content", ["", "{}", '{"schema": "gacq-deploy/bench/2"}', "[]"])
def test_what_is_no_report_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"bench\.json"):
        load_bench(tmp_path / "bench.json")
    with pytest.raises(ArtifactError, match="missing"):
        load_bench(tmp_path / "none.json")
