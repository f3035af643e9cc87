"""What does a command take? Memory of it and of all that it starts, CPU time by stage, and disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROGRAM = ("-c", "from gacq_deploy_cli.main import main; main()")
"""The installed program's, as Python's arguments."""
_SECONDS_BETWEEN = 0.05
_LOOKS_A_FOLDER = 20
"""The folder's size is taken once in so many looks: it holds many files, and grows slowly."""
_TICKS = os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")
_PEAKS = ("anon_mb", "file_mb", "peak_mb", "disk_mb")
Facts = dict[str, Any]


@dataclass
class Watched:
    """What a command took, and its answer.

    ``facts``: ``wall_s``; ``cpu_s``; ``anon_mb``, the highest sum of what it and all its descendants hold themselves;
    ``file_mb``, of mapped file pages, which can be dropped; ``peak_mb``, of both together; ``disk_mb``, the highest
    size of the folder; and ``stages``: name -> ``cpu_s`` and ``anon_mb`` while it was the running one.
    """

    code: int
    answer: str
    facts: Facts

    def document(self) -> Facts:
        """Return the answer of a command that was asked for JSON.

        Raises:
            SystemExit: it has none, because it failed.
        """
        try:
            found: Facts = json.loads(self.answer)
        except ValueError:
            raise SystemExit(f"it ended with {self.code} and no answer") from None
        return found


@dataclass
class _Stage:
    name: str
    cpu_s: float
    """Seconds at its begin."""
    anon_mb: int = 0


@dataclass
class _Watch:
    """What is seen of a process and its descendants until it ends."""

    pid: int
    folder: Path
    peaks: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_PEAKS, 0))
    cpu_s: float = 0.0
    stages: list[_Stage] = field(default_factory=lambda: [_Stage("start", 0.0)])

    def follow(self) -> None:
        """Look until it is gone."""
        looks = 0
        while self.look():
            if looks % _LOOKS_A_FOLDER == 0:
                self.peaks["disk_mb"] = max(self.peaks["disk_mb"], folder_bytes(self.folder) >> 20)
            looks += 1
            time.sleep(_SECONDS_BETWEEN)

    def look(self) -> bool:
        """Add what all of them hold now; tell whether the first still lives."""
        seen = [facts for pid in _family(self.pid) if (facts := _facts(pid)) is not None]
        if not seen:
            return False
        held = {key: sum(facts[key] for facts in seen) >> 10 for key in ("anon_mb", "file_mb")}
        held["peak_mb"] = sum(held.values())
        self.peaks |= {key: max(self.peaks[key], value) for key, value in held.items()}
        stage = self.stages[-1]
        stage.anon_mb = max(stage.anon_mb, held["anon_mb"])
        # who ended and was waited for counts at its parent's
        self.cpu_s = max(self.cpu_s, sum(facts["cpu"] for facts in seen) / _TICKS)
        return True

    def say(self, line: str) -> None:
        """Take note of a stage that a line of the progress announces."""
        if line.endswith(" ...") or " ... (" in line:
            self.stages.append(_Stage(line.partition(" ...")[0], self.cpu_s))

    def by_stage(self, cpu_s: float) -> Facts:
        """Return what every stage took, of so many CPU seconds in all."""
        ends = [*(stage.cpu_s for stage in self.stages[1:]), cpu_s]
        return {
            stage.name: {"cpu_s": round(end - stage.cpu_s, 1), "anon_mb": stage.anon_mb}
            for stage, end in zip(self.stages, ends, strict=True)
        }


def watch(arguments: Sequence[str], folder: Path, *, module: Sequence[str] = PROGRAM) -> Watched:
    """Run Python with one thread and watch it, all that it starts, and a folder that it writes.

    Args:
        arguments: of the program.
        folder: whose size is watched.
        module: the program, as Python's arguments.
    """
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as answer:
        process = subprocess.Popen(
            [sys.executable, *module, *arguments],
            stdout=answer,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        seen = _Watch(process.pid, folder)
        watcher = threading.Thread(target=seen.follow, daemon=True)
        watcher.start()
        assert process.stderr is not None
        with process.stderr as lines:
            for line in lines:
                seen.say(line.rstrip())
                sys.stderr.write(line)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        watcher.join()
        answer.seek(0)
        said = answer.read()
    cpu_s = usage.ru_utime + usage.ru_stime
    facts = {
        "wall_s": round(time.monotonic() - began, 1),
        "cpu_s": round(cpu_s, 1),
        **seen.peaks,
        "stages": seen.by_stage(cpu_s),
    }
    return Watched(process.returncode, said, facts)


def _family(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    found, pending = [], [pid]
    while pending:
        found.append(pending.pop())
        for children in _PROC.glob(f"{found[-1]}/task/*/children"):
            try:
                pending += map(int, children.read_text().split())
            except OSError:
                continue
    return found


def _facts(pid: int) -> Mapping[str, int] | None:
    """Return KB that a process holds itself and maps of files, and its ticks of CPU; None: it is gone."""
    try:
        status = (_PROC / str(pid) / "status").read_text()
        # behind the name in parentheses, which may hold anything: state, parent, ..., four times from the 12th on
        times = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[11:15]
        lines = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        held = {"anon_mb": lines["RssAnon"], "file_mb": lines["RssFile"]}
    except (OSError, KeyError):
        return None
    return {**{key: int(value.split()[0]) for key, value in held.items()}, "cpu": sum(map(int, times))}


def folder_bytes(folder: Path) -> int:
    """Return what the files in a folder take on the disk."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_blocks * 512 if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total
