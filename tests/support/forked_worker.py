"""Builds that do not each import the library: a server imports it once and forks a worker for every build.

``python forked_worker.py serve SOCKET`` serves; ``python forked_worker.py ask SOCKET JOB`` stands in for
``python -m gacq_deploy.building.worker JOB``: same files, same output, same exit code or signal.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


def serve(address: str) -> None:
    """Fork a worker for each request until killed."""
    from gacq_deploy.backends.trt_library import load_trt
    from gacq_deploy.building import worker

    load_trt("tensorrt-rtx")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address)
        listener.listen()
        while True:
            connection, _ = listener.accept()
            with connection:
                job, files, _, _ = socket.recv_fds(connection, 4096, 2)
                pid = os.fork()
                if pid == 0:
                    _work(worker, job.decode(), files)
                for file in files:
                    os.close(file)
                _, status = os.waitpid(pid, 0)
                connection.send(str(os.waitstatus_to_exitcode(status)).encode())


def _work(worker: object, job: str, files: list[int]) -> None:
    from pathlib import Path

    for target, file in zip((1, 2), files, strict=True):
        os.dup2(file, target)
    code = 1
    try:
        code = worker.main(Path(job))
    finally:
        sys.stdout.flush()
        os._exit(code)


def ask(address: str, job: str) -> int:
    """Have one job done; end as the worker ended."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(address)
        socket.send_fds(connection, [job.encode()], [1, 2])
        code = int(connection.recv(64) or b"1")
    if code < 0:
        os.kill(os.getpid(), -code)
    return code


@contextmanager
def forked_workers(folder: str) -> Iterator[tuple[str, ...]]:
    """Serve inside the block; yield the command to put in place of the worker's own."""
    import subprocess
    from pathlib import Path

    address = Path(folder, "builds")
    server = subprocess.Popen([sys.executable, __file__, "serve", str(address)])
    try:
        until = time.monotonic() + 60
        while not address.exists():
            if server.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the build server did not start (code {server.returncode})")
            time.sleep(0.02)
        # without site packages: the client starts in 20 ms
        yield (sys.executable, "-I", "-S", __file__, "ask", str(address))
    finally:
        server.send_signal(signal.SIGKILL)
        server.wait()


if __name__ == "__main__":
    mode, *rest = sys.argv[1:]
    sys.exit(serve(*rest) if mode == "serve" else ask(*rest))
