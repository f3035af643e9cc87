from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gacq_deploy import backends
from gacq_deploy.errors import BackendUnavailable, UsageError
from tests.support.onnx_graphs import denoiser_graph


def test_an_unknown_engine_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match="ort-cpu, ort-cuda, openvino"):
        backends.open_engine("tensorflow", b"")


def test_negative_threads_are_refused() -> None:
    with pytest.raises(UsageError, match="-1 threads"):
        backends.open_engine("ort-cpu", b"", threads=-1)


def test_every_engine_has_a_pip_line() -> None:
    assert {name: backends.pip_line(name) for name in backends.BACKENDS} == {
        "ort-cpu": "pip install 'gacq-deploy[cpu]'",
        "ort-cuda": "pip install 'gacq-deploy[gpu]'",
        "openvino": "pip install 'gacq-deploy[openvino]'",
    }


def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, source: str) -> str:
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, name, raising=False)
    return f"{name}:Engine"


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("import a_library_nobody_has", "a_library_nobody_has"),
        ("from json import InferenceSession", "InferenceSession"),  # an emptied onnxruntime looks like this
        ("raise OSError('libnvinfer.so.11: cannot open shared object file')", "libnvinfer.so.11"),
    ],
)
def test_a_missing_library_gives_the_pip_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, told: str
) -> None:
    monkeypatch.setitem(
        backends.BACKENDS, "ort-cpu", _module(tmp_path, monkeypatch, "gacq_absent_backend", source)
    )
    with pytest.raises(BackendUnavailable) as caught:
        backends.open_engine("ort-cpu", denoiser_graph().SerializeToString())
    assert told in caught.value.message
    assert caught.value.hint == "pip install 'gacq-deploy[cpu]'"


@pytest.mark.parametrize("source", ["import gacq_deploy.no_such_module", "raise RuntimeError('a bug')"])
def test_our_own_mistakes_are_not_a_missing_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.setitem(
        backends.BACKENDS, "ort-cpu", _module(tmp_path, monkeypatch, "gacq_broken_backend", source)
    )
    with pytest.raises((ImportError, RuntimeError)):
        backends.open_engine("ort-cpu", b"")
