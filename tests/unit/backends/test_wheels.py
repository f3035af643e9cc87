from __future__ import annotations

from pathlib import Path

import pytest

from gacq_deploy.backends.wheels import onnxruntime_wheels, require_one_onnxruntime
from gacq_deploy.engines.open import open_engine
from gacq_deploy.errors import BackendUnavailable
from tests.support.graphs.onnx_graphs import denoiser_graph


def _install(folder: Path, name: str, version: str) -> None:
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_one_wheel_is_fine() -> None:
    assert len(onnxruntime_wheels()) == 1
    require_one_onnxruntime()


@pytest.mark.parametrize("spelling", ["onnxruntime-gpu", "onnxruntime_gpu", "ONNXRuntime-GPU"])
def test_two_wheels_are_refused_with_both_pip_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str
) -> None:
    have = next(iter(onnxruntime_wheels()))
    other = "onnxruntime" if have == "onnxruntime-gpu" else spelling
    _install(tmp_path, other, "1.31.1")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(BackendUnavailable) as caught:
        open_engine("ort-cpu", denoiser_graph().SerializeToString())
    assert "onnxruntime-gpu 1.31.1" in caught.value.message
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in caught.value.hint
    assert "pip install 'gacq-deploy[cpu]'" in caught.value.hint
