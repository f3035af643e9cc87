"""How does a test run Python code in a process of its own, and save the imports? From a server that has done them.

A process starts in milliseconds where the imports of torch and diffusers take seconds. What tests the start itself, or
must not have a library, starts an interpreter of its own.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tests.support.programs import warm_server
from tests.support.programs.commands import child_environment

CALIBRATION = """
import numpy, torch, diffusers, onnx
import gacq_deploy.calibration.stage, gacq_deploy.export.stage, gacq_deploy.export.float_graph.graph
import gacq_deploy_cli.main
from tests.support.graphs.float_graphs import keep_graphs
keep_graphs(setattr)
"""
"""What a command imports that calibrates and exports."""
_TENSORRT = """
from contextlib import suppress
import gacq_deploy.build_trt.worker
from gacq_deploy.backends.trt.library import load_trt
from gacq_deploy.backends.trt.polygraphy import load_polygraphy
from gacq_deploy.errors import BackendUnavailable
with suppress(BackendUnavailable):
    load_polygraphy(load_trt("tensorrt-rtx"))
"""
_BENCH = """
import gacq_deploy.bench.worker
import gacq_deploy.backends.ort
"""
"""OpenVINO starts a thread where it is imported."""
_POLYGRAPHY = """
import onnx, onnxruntime, torch
import polygraphy.backend.onnx, polygraphy.backend.onnxrt, polygraphy.comparator, polygraphy.tools
"""
"""PyTorch is imported where inputs are read, if it is installed."""
_BUILD = """
import os, sys
from pathlib import Path
from gacq_deploy.build_trt.worker import run
code = run(Path(sys.argv[1]))
sys.stdout.flush()
os._exit(code)
"""
"""Without the interpreter's orderly end, which takes as long as a build of one layer."""


@contextmanager
def serving(folder: Path, imports: str) -> Iterator[str]:
    """Serve inside the block from a process that runs ``imports``; yield its address, a socket in ``folder``."""
    address = str(folder / "server")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address)
        listener.listen()  # from now on whoever asks waits for the imports
        number = listener.fileno()
        server = subprocess.Popen(
            [sys.executable, "-P", warm_server.__file__, "serve", str(number), imports],
            stdin=subprocess.DEVNULL, env=child_environment(), pass_fds=[number],
            start_new_session=True,  # Ctrl-C reaches the tests only, whose end is its end
        )  # fmt: skip
    with server:
        try:
            yield address
        finally:
            server.kill()


def warm_command(address: str, code: str) -> tuple[str, ...]:
    """Return the command to put in place of ``python -c CODE``; arguments may follow."""
    # without site packages: the client starts in 20 ms
    return (sys.executable, "-I", "-S", warm_server.__file__, "ask", address, code)


@contextmanager
def build_workers(folder: Path) -> Iterator[tuple[str, ...]]:
    """Serve inside the block; yield the command to put in place of the TensorRT worker's own."""
    with serving(folder, _TENSORRT) as address:
        yield warm_command(address, _BUILD)


@contextmanager
def bench_workers(folder: Path) -> Iterator[tuple[str, ...]]:
    """Serve inside the block; yield the command to put in place of the one that measures an engine."""
    with serving(folder, _BENCH) as address:
        yield warm_command(address, "from gacq_deploy.bench.worker import main; main()")


@contextmanager
def polygraphy_tool(folder: Path) -> Iterator[tuple[str, ...]]:
    """Serve inside the block; yield the command to put in place of ``polygraphy``."""
    with serving(folder, _POLYGRAPHY) as address:
        yield warm_command(address, "import sys; from polygraphy.tools import main; sys.exit(main())")


class WarmProcess:
    """Python code in a process of its own, used as a :class:`subprocess.Popen` whose streams are text pipes.

    It does not outlive the block that it is used in.
    """

    stdin: IO[str]
    stdout: IO[str]
    stderr: IO[str]

    def __init__(self, address: str, code: str, *arguments: str) -> None:
        (stdin, writer), *outputs = (os.pipe() for _ in range(3))
        theirs = (stdin, *(w for _, w in outputs))
        self._connection, self.pid = warm_server.request(
            address, code, arguments, child_environment(), theirs
        )
        for stream in theirs:
            os.close(stream)
        self.stdin = os.fdopen(writer, "w")
        self.stdout, self.stderr = (os.fdopen(reader) for reader, _ in outputs)
        self.returncode: int | None = None

    def __enter__(self) -> WarmProcess:
        return self

    def __exit__(self, *_: object) -> None:
        for part in (self.stdin, self.stdout, self.stderr, self._connection):
            part.close()

    def _look(self, seconds: float | None) -> int | None:
        if self.returncode is None and select.select([self._connection], [], [], seconds)[0]:
            self.returncode = warm_server.read_number(self._connection)
        return self.returncode

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal, or None while the process runs."""
        return self._look(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit code."""
        code = self._look(timeout)
        if code is None:
            raise TimeoutError
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Close stdin, return the rest of both outputs and wait for the end; a process out of time is killed."""
        self.stdin.close()
        with ThreadPoolExecutor(2) as pool:
            try:
                stdout, stderr = pool.map(lambda s: s.read(), (self.stdout, self.stderr), timeout=timeout)
            except TimeoutError:
                self.send_signal(signal.SIGKILL)
                raise
        self.wait()
        return stdout, stderr
