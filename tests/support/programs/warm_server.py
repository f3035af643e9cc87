"""How does a Python process start without importing anything anew? A server imports once and forks every process.

``python warm_server.py serve DESCRIPTOR IMPORTS`` runs import statements and serves on a listening socket it inherits.
``python warm_server.py ask SOCKET CODE ARGUMENT...`` stands in for ``python -c CODE ARGUMENT...``: same files, same
streams, same exit code or signal.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

_LARGEST_REQUEST = 1 << 18
_PR_SET_PDEATHSIG = 1


def request(
    address: str, code: str, arguments: Sequence[str], environment: dict[str, str], streams: Sequence[int]
) -> tuple[socket.socket, int]:
    """Have code run as ``__main__``; return the connection, on which its exit code will come, and its process id.

    Args:
        address: the server's socket.
        code: Python statements.
        arguments: what they find in ``sys.argv`` from 1 on.
        environment: what they find in ``os.environ``.
        streams: stdin, stdout and stderr as file descriptors.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(address)
    folder = os.getcwd()  # noqa: PTH109 (pathlib would make the client's start a third longer)
    document = {"code": code, "arguments": [*arguments], "environment": environment, "folder": folder}
    socket.send_fds(connection, [json.dumps(document).encode()], streams)
    return connection, read_number(connection)


def read_number(connection: socket.socket) -> int:
    """Return what the server said: a process id, or an exit code, negative for a signal."""
    said = connection.recv(64)
    if not said:
        raise EOFError("the server of warm processes has ended")
    return int(said)


def _ask(address: str, code: str, *arguments: str) -> int:
    connection, _ = request(address, code, arguments, dict(os.environ), (0, 1, 2))
    ended = read_number(connection)
    if ended < 0:
        os.kill(os.getpid(), -ended)
    return ended


def _serve(descriptor: str, imports: str) -> str:
    """Import, then fork for each request until the parent ends; return in the forked process, with its code."""
    import ctypes
    import gc
    from pathlib import Path

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    gc.disable()
    exec(imports, {})
    gc.enable()
    gc.freeze()  # otherwise every process at its end walks through all of them: a second, and each page copied
    if len([*Path("/proc/self/task").iterdir()]) > 1:
        raise RuntimeError("an import started a thread, which no forked process would have")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
    with socket.socket(fileno=int(descriptor)) as listener:
        while True:
            connection, _ = listener.accept()
            with connection:
                if os.fork() == 0:
                    listener.close()
                    return _keep(connection)


def _keep(connection: socket.socket) -> str:
    """Fork the process asked for and tell how it ends; it does not outlive whoever asked."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    text, streams, _, _ = socket.recv_fds(connection, _LARGEST_REQUEST, 3)
    pid = os.fork()
    if pid == 0:
        connection.close()
        return _become(json.loads(text), streams)
    for stream in streams:
        os.close(stream)
    with suppress(OSError):  # whoever asked may be gone
        connection.send(str(pid).encode())
    select.select([os.pidfd_open(pid), connection], [], [])
    os.kill(pid, signal.SIGKILL)  # if it ended, this changes nothing
    _, status = os.waitpid(pid, 0)
    with suppress(OSError):
        connection.send(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def _become(document: dict[str, Any], streams: Sequence[int]) -> str:
    """Make this process what was asked for; return its code."""
    for target, stream in enumerate(streams):
        os.dup2(stream, target)
        os.close(stream)
    os.environ.clear()
    os.environ.update(document["environment"])
    os.chdir(document["folder"])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a background job of a shell
    sys.argv = ["-c", *document["arguments"]]
    return str(document["code"])


if __name__ == "__main__":
    mode, *rest = sys.argv[1:]
    if mode == "ask":
        sys.exit(_ask(*rest))
    # at the outermost level: the interpreter itself ends the process, whatever the code raises
    exec(_serve(*rest), {"__name__": "__main__"})
