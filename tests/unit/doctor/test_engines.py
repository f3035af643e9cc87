"""Are engines really opened, and does a provider that does not open say why?"""

from __future__ import annotations

import sys

import pytest

from gacq_deploy.doctor import engines
from gacq_deploy.doctor.ask import Reply, ask
from gacq_deploy.doctor.graph import one_node_graph

# what onnxruntime-gpu 1.31.1 writes on a machine without CUDA
REFUSED = """\
2026-11-23 03:31:35.9 [E:onnxruntime:Default, provider_bridge_ort.cc:2458 operator()] FAIL : Failed to load library \
/opt/env/onnxruntime/capi/libonnxruntime_providers_cuda.so with error: libcublasLt.so.13: cannot open shared object \
file: No such file or directory
2026-11-23 03:31:35.9 [W:onnxruntime:Default, onnxruntime_pybind_state.cc:1295] Failed to create CUDAExecutionProvider.
"""


def test_an_engine_that_computes_wrongly_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    right = one_node_graph()
    assert right.count(b"Add") == 1
    monkeypatch.setattr(engines, "one_node_graph", lambda: right.replace(b"Add", b"Sub"))
    check = engines._engine("ort-cpu", needed=True)
    assert check.status == "fail"
    assert "computed 1 + 1 = 0" in check.value


def test_an_engine_without_its_library_is_a_failure_only_where_it_is_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "gacq_deploy.backends.ort", raising=False)
    assert engines._engine("ort-cpu", needed=True).status == "fail"
    assert engines._engine("ort-cpu", needed=False).status == "absent"
    assert list(engines.providers()) == []


def test_a_real_session_is_created_in_the_child() -> None:
    assert ask("provider", "CPUExecutionProvider").answer == {"opens": True}


def test_offered_providers_that_do_not_open_name_the_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    offered = ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")
    monkeypatch.setattr(engines, "_offered", lambda: offered)
    monkeypatch.setattr(engines, "ask", lambda *_question: Reply({"opens": False}, said=REFUSED))
    (provider,) = engines.providers()
    assert (provider.name, provider.status) == ("provider Tensorrt", "absent")
    cuda = next(check for check in engines.opened() if check.name == "engine ort-cuda")
    assert cuda.status == "fail"
    assert cuda.value == "CUDAExecutionProvider cannot be created: libcublasLt.so.13 is not here"


def test_a_provider_that_opens_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_offered", lambda: ("TensorrtExecutionProvider",))
    monkeypatch.setattr(engines, "ask", lambda *_question: Reply({"opens": True}))
    assert [check.status for check in engines.providers()] == ["ok"]


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (Reply(problem="it crashed: SIGSEGV"), "it crashed: SIGSEGV"),
        (Reply({"opens": False}), "ONNX Runtime gave another one"),
    ],
    ids=["crash", "silent"],
)
def test_a_provider_without_a_missing_library_says_what_it_can(reply: Reply, says: str) -> None:
    assert engines.why_not(reply) == says
