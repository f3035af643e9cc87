from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gacq_deploy.engines.open import check_threads, open_engine
from gacq_deploy.errors import BackendUnavailable, UsageError
from tests.support.graphs.onnx_graphs import denoiser_graph
from tests.support.programs.engine_records import change_engine


def test_an_unknown_engine_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match="ort-cpu, openvino, ort-cuda, tensorrt, tensorrt-rtx, float"):
        open_engine("tensorflow", b"")


def test_a_compiled_engine_opens_no_graph() -> None:
    with pytest.raises(UsageError, match="not ONNX graphs"):
        open_engine("tensorrt-rtx", b"")


def test_negative_threads_are_refused() -> None:
    with pytest.raises(UsageError, match="-1 threads"):
        open_engine("ort-cpu", b"", threads=-1)


def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, source: str) -> str:
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, name, raising=False)
    return f"{name}:Engine"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import a_library_nobody_has", "a_library_nobody_has"),
        ("from json import InferenceSession", "InferenceSession"),  # an emptied onnxruntime looks like this
        ("raise OSError('libnvinfer.so.11: cannot open shared object file')", "libnvinfer.so.11"),
    ],
)
def test_a_missing_library_gives_the_pip_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str
) -> None:
    change_engine(
        monkeypatch, "ort-cpu", backend=_module(tmp_path, monkeypatch, "gacq_absent_backend", source)
    )
    with pytest.raises(BackendUnavailable) as caught:
        open_engine("ort-cpu", denoiser_graph().SerializeToString())
    assert message in caught.value.message
    assert caught.value.hint == "pip install 'gacq-deploy[cpu]'"


@pytest.mark.parametrize("source", ["import gacq_deploy.no_such_module", "raise RuntimeError('a bug')"])
def test_our_own_mistakes_are_not_a_missing_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    change_engine(
        monkeypatch, "ort-cpu", backend=_module(tmp_path, monkeypatch, "gacq_broken_backend", source)
    )
    with pytest.raises((ImportError, RuntimeError)):
        open_engine("ort-cpu", b"")


@pytest.mark.parametrize("threads", [-1, 1025, 100_000])
def test_a_number_of_threads_that_no_library_takes_is_refused(threads: int) -> None:
    with pytest.raises(UsageError, match=f"{threads} threads were asked for") as caught:
        check_threads(threads)
    assert "1024" in caught.value.hint
