"""Export holds no model: its own memory does not grow with the weights."""

from __future__ import annotations

from pathlib import Path

from benchmarks.large_export import make_run
from benchmarks.watched import watch
from gacq_deploy.export.record import load_export

MOST_MB = 700


def test_300_million_parameters_are_exported_in_little_memory(tmp_path: Path) -> None:
    run = make_run(tmp_path, "wide", half=True)
    weights = sum(file.stat().st_size for file in (tmp_path / "model").rglob("*.safetensors")) / 2
    assert weights > 300e6
    seen = watch(["export", "--onnx", str(run.root), "--json"], run.root)
    assert seen.code == 0
    assert seen.facts["anon_mb"] < MOST_MB
    record = load_export(run)
    assert set(record.graphs) == {"float.onnx", "int8.onnx", "int8.cpu.onnx"}
    assert record.bytes_of("float.onnx") < 2.1 * weights, "weights stored in half precision have doubled"
    assert record.bytes_of("int8.onnx") < 1.5 * weights
