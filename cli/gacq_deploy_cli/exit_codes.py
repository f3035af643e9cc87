"""Which exit code does an error get, and what is said? One table, no library beside click."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import click

from gacq_deploy.errors import (
    ArtifactError,
    BackendUnavailable,
    GacqError,
    GateError,
    ModelError,
    ResourceError,
    UsageError,
)
from gacq_deploy.storage.documents import shown
from gacq_deploy.storage.memory import lack_of_memory, starved
from gacq_deploy.storage.room import FULL, no_space
from gacq_deploy_cli.entry import Ended

DONE = 0
FAILURE = 1
USAGE = 2
GATE = 3
ENVIRONMENT = 4
STALE = 5
RESOURCES = 6
INTERRUPTED = 130
"""What a shell gives a program that SIGINT ended."""
HUNG_UP, TERMINATED = 129, 143
"""The same for SIGHUP and SIGTERM."""
CLOSED_PIPE = 141
"""What a shell gives a program that SIGPIPE ended."""

MEANINGS: Mapping[int, str] = {
    DONE: "done",
    FAILURE: "failure",
    USAGE: "usage or recipe",
    GATE: "a gate failed",
    ENVIRONMENT: "something is missing in the environment",
    STALE: "stale, corrupt or unverified file",
    RESOURCES: "out of disk, memory or time",
    HUNG_UP: "ended by SIGHUP with state saved",
    INTERRUPTED: "interrupted with state saved",
    CLOSED_PIPE: "the reader of the output went away",
    TERMINATED: "ended by SIGTERM with state saved",
}
"""Every exit code in words: `--help` and the documents read them here."""

EXIT_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (UsageError, USAGE),
    (ModelError, USAGE),
    (GateError, GATE),
    (BackendUnavailable, ENVIRONMENT),
    (ArtifactError, STALE),
    (ResourceError, RESOURCES),
    (GacqError, FAILURE),
    (click.UsageError, USAGE),
    (click.Abort, INTERRUPTED),
    (KeyboardInterrupt, INTERRUPTED),
    (MemoryError, RESOURCES),
    (Exception, FAILURE),
)
"""The first class that fits decides."""
_SAYS_IT = (ResourceError, GateError, click.ClickException, click.Abort, KeyboardInterrupt)
"""What is said of these is right; behind any other may stand a library that was given no memory."""


@dataclass(frozen=True)
class Failure:
    """What is said about an error."""

    kind: str
    message: str
    hint: str
    exit_code: int

    def document(self) -> dict[str, Any]:
        """Return the one JSON document of a failed command."""
        return {"error": asdict(self)}

    def text(self) -> str:
        """Return the message and, on a new line, the remedy."""
        return f"{self.message}\n{self.hint}" if self.hint else self.message


def explain(error: BaseException) -> Failure:
    """Turn any error that left a command into what is said about it."""
    kind = type(error).__name__
    code = next((code for cls, code in EXIT_CODES if isinstance(error, cls)), FAILURE)
    lack = None if isinstance(error, _SAYS_IT) else lack_of_memory(error)
    if lack is not None:
        return Failure(type(lack).__name__, lack.message, lack.hint, RESOURCES)
    if isinstance(error, GacqError):
        return Failure(kind, error.message, error.hint, code)
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx else "gacq-deploy"
        return Failure(kind, error.format_message(), f"`{path} --help` lists what it takes.", code)
    if isinstance(error, click.ClickException):
        return Failure(kind, error.format_message(), "", code)
    if code == INTERRUPTED:
        # click puts an exception of its own before it
        cause = error.__cause__ if isinstance(error, click.Abort) else error
        code = cause.exit_code if isinstance(cause, Ended) else code
        return Failure(
            "Interrupted",
            "Interrupted; everything finished so far is saved (state saved).",
            "Run the same command again: it goes on where it stopped.",
            code,
        )
    return _explain_system(error, kind, code)


def _explain_system(error: BaseException, kind: str, code: int) -> Failure:
    if isinstance(error, OSError) and error.errno in FULL:
        full = no_space(error, error.filename)
        return Failure(kind, full.message, full.hint, RESOURCES)
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        said = f"{shown(str(error.filename))} is a longer path than the system takes."
        return Failure(kind, said, "Choose a shorter one: no name in it has more than 255 bytes.", USAGE)
    if isinstance(error, OSError):
        return Failure(kind, f"The system refused: {error}.", "Check the path and its permissions.", code)
    if (lack := starved(error)) is not None:
        return Failure(type(lack).__name__, lack.message, lack.hint, RESOURCES)
    return Failure(
        kind,
        f"Internal error: {kind}: {error}",
        "This is a bug: run again with --debug and report the traceback.",
        code,
    )
