"""Does a library that crashes, hangs or chatters end in one clear line?"""

from __future__ import annotations

import sys

import pytest

from gacq_deploy.doctor import ask as asking
from gacq_deploy.doctor.ask import ask, read_reply


def _child(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    monkeypatch.setattr(asking, "_PROBE", (sys.executable, "-c", code))


def test_the_answer_is_the_last_line_whatever_a_library_prints_before_it() -> None:
    reply = read_reply(0, 'library banner\n{"not": "this"}\n{"version": "11.4"}\n', "warning\n")
    assert (reply.answer, reply.problem, reply.said) == ({"version": "11.4"}, "", "warning\n")


def test_an_answer_before_a_crash_at_exit_still_counts() -> None:
    assert read_reply(-11, '{"version": "11.4"}\n', "").answer == {"version": "11.4"}


@pytest.mark.parametrize(
    ("status", "stdout", "stderr", "problem"),
    [
        (-11, "", "noise\n", "it crashed: SIGSEGV"),
        (-250, "", "", "it crashed: signal 250"),
        (1, "", "Traceback\nImportError: libx.so\n", "ImportError: libx.so"),
        (3, "half a li", "", "exit status 3"),
        (0, "[1, 2]", "", "exit status 0"),
    ],
    ids=["segfault", "unknown-signal", "traceback", "silence", "no-object"],
)
def test_no_answer_is_a_problem_in_a_line(status: int, stdout: str, stderr: str, problem: str) -> None:
    reply = read_reply(status, stdout, stderr)
    assert (reply.answer, reply.problem) == ({}, problem)


def test_a_real_crash_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    _child(monkeypatch, "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert ask("cuda").problem == "it crashed: SIGSEGV"


def test_a_hang_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    _child(monkeypatch, "import time; time.sleep(60)")
    assert ask("cuda", timeout_s=0.2).problem == "no answer within 0 s"


def test_a_missing_interpreter_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "_PROBE", ("/no/such/python",))
    assert "No such file" in ask("cuda").problem


def test_the_real_child_answers_and_names_what_is_missing() -> None:
    assert set(ask("cuda").answer) & {"absent", "devices"}
    reply = ask("tensorrt", "tensorrt")
    assert reply.problem or reply.answer["version"]
    assert "no such thing" in ask("provider", "no such thing").problem
