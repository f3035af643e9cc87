"""One table from errors to exit codes: complete, and in the right order."""

from __future__ import annotations

import errno
import inspect
import re
from pathlib import Path

import click
import pytest

from gacq_deploy import errors
from gacq_deploy.errors import GacqError
from gacq_deploy_cli.exit_codes import explain

CODES = {
    "GacqError": 1,
    "UsageError": 2,
    "RecipeError": 2,
    "ModelError": 2,
    "CalibrationError": 1,
    "ArtifactError": 5,
    "ExportError": 1,
    "EngineError": 1,
    "GateError": 3,
    "BackendUnavailable": 4,
    "ResourceError": 6,
}


def _family() -> dict[str, type[GacqError]]:
    members = vars(errors).values()
    return {m.__name__: m for m in members if inspect.isclass(m) and issubclass(m, GacqError)}


def test_every_error_of_the_family_has_its_code() -> None:
    assert {name: explain(cls("what", "remedy")).exit_code for name, cls in _family().items()} == CODES


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (click.UsageError("no such option"), 2, "no such option"),
        (click.BadParameter("too small"), 2, "too small"),
        (click.Abort(), 130, "state saved"),
        (KeyboardInterrupt(), 130, "state saved"),
        (MemoryError("4 GiB"), 6, "4 GiB"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            6,
            "Out of memory",
        ),
        (RuntimeError("could not create a primitive"), 6, "Out of memory: could not create a primitive"),
        (RuntimeError("can't start new thread"), 6, "no more threads"),
        (OSError(errno.ENOSPC, "No space left on device", "a.bin"), 6, "a.bin"),
        (OSError(errno.EFBIG, "File too large", "a.bin"), 6, "a.bin"),
        (OSError(errno.EACCES, "Permission denied", "a.bin"), 1, "a.bin"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "a.bin" * 1000), 2, "... is a longer path"),
        (TypeError("a bug"), 1, "Internal error: TypeError: a bug"),
        (RuntimeError("a bug"), 1, "Internal error"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_other_errors(error: BaseException, code: int, says: str) -> None:
    failure = explain(error)
    assert failure.exit_code == code
    assert says in failure.message
    assert failure.hint
    assert (code == 130) == ("the same command again: it goes on where it stopped" in failure.hint)


def test_the_document_holds_what_the_text_says() -> None:
    failure = explain(errors.ArtifactError("It was altered.", "Export again."))
    assert failure.document() == {
        "error": {
            "kind": "ArtifactError",
            "message": "It was altered.",
            "hint": "Export again.",
            "exit_code": 5,
        }
    }
    assert failure.text() == "It was altered.\nExport again."


def test_what_memory_led_to_is_no_other_failure() -> None:
    error = errors.EngineError("The engine refuses the model.", "Lint it.")
    error.__cause__ = RuntimeError("std::bad_alloc")
    failure = explain(error)
    assert (failure.kind, failure.exit_code) == ("ResourceError", 6)
    assert failure.message.startswith("Out of memory: std::bad_alloc. ")


def test_a_full_disk_says_how_much_is_free(tmp_path: Path) -> None:
    failure = explain(OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "a.bin")))
    assert re.search(rf"while writing {tmp_path}/a.bin .*: {tmp_path} has \d+ bytes free", failure.message)
