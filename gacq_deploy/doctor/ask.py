"""How is a library asked without trusting it? In a child process: a broken one takes its process with it."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass, field
from typing import Any

from gacq_deploy.processes.spawn import module_command, signal_name

_PROBE = module_command("gacq_deploy.doctor.probe")
_TIMEOUT_S = 120


@dataclass(frozen=True)
class Reply:
    """The child's answer; ``problem`` says in a line why there is none, ``said`` is what stood on stderr."""

    answer: dict[str, Any] = field(default_factory=dict)
    problem: str = ""
    said: str = ""


def ask(*question: str, timeout_s: float = _TIMEOUT_S) -> Reply:
    """Ask in a child process; a crash or a hang there is a problem in the reply."""
    command = [*_PROBE, *question]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        return Reply(problem=f"no answer within {timeout_s:.0f} s")
    except OSError as error:
        return Reply(problem=str(error))
    return read_reply(done.returncode, done.stdout, done.stderr)


def read_reply(status: int, stdout: str, stderr: str) -> Reply:
    """Make a reply of an exit status and two streams; libraries may print before the answer, and crash after it."""
    last = stdout.strip().splitlines()[-1:]
    try:
        answer = json.loads(last[0]) if last else None
    except ValueError:
        answer = None
    if isinstance(answer, dict):
        return Reply(answer, str(answer.get("problem", "")), stderr)
    if status < 0:
        return Reply(problem=f"it crashed: {signal_name(-status)}", said=stderr)
    lines = stderr.strip().splitlines()
    return Reply(problem=lines[-1] if lines else f"exit status {status}", said=stderr)
