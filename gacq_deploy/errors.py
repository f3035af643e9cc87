"""What can go wrong, and what should the user do?

GacqError                  message (what, with the values; where) and hint (what to do)
├── UsageError             a bad argument, option or input value
│   └── RecipeError        file:line, key, allowed values
├── ModelError             unknown family, unsupported layer, site not found
├── CalibrationError       loss not finite, empty set
├── ArtifactError          schema version, digest, missing tensor: stale, corrupt or unverified
├── ExportError            no node for a site, opset, lint
├── EngineError            load or run failed, input outside the declared shape
├── GateError              a gate was evaluated and failed
├── BackendUnavailable     a package, provider or device is missing (hint: the pip line)
└── ResourceError          out of disk, memory or time; directory busy
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from difflib import get_close_matches

RESTORE = "Restore it from a copy, or calibrate into another folder with -o."
"""What to do where something that calibration wrote is no longer what it was; never to throw away what is left."""
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What a terminal obeys instead of showing it, and halves of characters: bytes that are no UTF-8."""
_LAYOUT = "\n\t"
"""Of these what our own texts hold."""


def printable(name: str) -> str:
    """Return a name that others gave, with escapes in place of control characters."""
    return _UNPRINTABLE.sub(_escaped, name)


def printable_text(text: str) -> str:
    """Return a text of ours with others' names in it: as :func:`printable`, but for its own lines and tabs.

    JSON stays JSON, with the same values.
    """
    return _UNPRINTABLE.sub(lambda found: found[0] if found[0] in _LAYOUT else _escaped(found), text)


def _escaped(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


class GacqError(Exception):
    """Something a user can mend. ``str()`` is the message and, on a new line, the hint; both are printable."""

    def __init__(self, message: str, hint: str = "") -> None:
        self.message, self.hint = printable_text(message), printable_text(hint)
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class UsageError(GacqError):
    """An argument, option or input value is wrong."""


class RecipeError(UsageError):
    """A recipe cannot be read, validated or resolved against the model."""


class ModelError(GacqError):
    """The model's family, layers or configuration are not supported."""


class CalibrationError(GacqError):
    """Calibration cannot start or had to stop."""


class ArtifactError(GacqError):
    """A file is stale, corrupt, of another version, or belongs to another model."""


class ExportError(GacqError):
    """The float graph or the Q/DQ graph cannot be made, or is illegal."""


class EngineError(GacqError):
    """An engine failed to load or to run."""


class GateError(GacqError):
    """A gate was evaluated and failed."""


class BackendUnavailable(GacqError):
    """A package, execution provider or device is missing."""


class ResourceError(GacqError):
    """Disk, memory or time ran out, or another process holds the directory."""


def did_you_mean(given: object, known: Iterable[str]) -> str:
    """Return the start of a hint, ``Did you mean 'x'? ``, where one of the known names is close to what was given."""
    close = get_close_matches(str(given), known, n=1)
    return f"Did you mean '{close[0]}'? " if close else ""


def quoted(word: object) -> str:
    """Return a path or another word as a shell takes it, for hints that are pasted."""
    return shlex.quote(str(word))


def shell_command(*words: object) -> str:
    """Return a command of ours as a shell takes it."""
    return " ".join(("gacq-deploy", *map(quoted, words)))
