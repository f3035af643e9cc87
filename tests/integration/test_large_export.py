"""Export holds no model: its own memory hardly grows with the weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.large_export import make_run
from benchmarks.watched import watch
from gacq_deploy.export.record import load_export


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parameters", "most_mb"),
    [("wide", 300e6, 700), pytest.param("sd15", 850e6, 1500, marks=pytest.mark.soak)],
)
def test_a_large_model_is_exported_in_little_memory(
    tmp_path: Path, name: str, parameters: float, most_mb: int
) -> None:
    run = make_run(tmp_path, name, half=True)
    folder = run.load_recipe().model.source
    denoiser = next(f for part in ("unet", "transformer") if (f := Path(folder) / part).is_dir())
    weights = sum(file.stat().st_size for file in denoiser.glob("*.safetensors")) / 2
    assert weights > parameters
    seen = watch(["export", "--onnx", str(run.root), "--json"], run.root)
    assert seen.code == 0
    assert seen.facts["anon_mb"] < most_mb
    record = load_export(run)
    assert set(record.graphs) == {"float.onnx", "int8.onnx", "int8.cpu.onnx"}
    assert record.bytes_of("float.onnx") < 2.1 * weights, "weights stored in half precision have doubled"
    assert record.bytes_of("int8.onnx") < 1.5 * weights
