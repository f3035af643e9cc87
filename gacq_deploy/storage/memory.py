"""Does an error of whatever library mean that memory or threads ran out, and how much was asked for and is there?"""

from __future__ import annotations

import errno
import re
import resource
from collections.abc import Iterator
from pathlib import Path

from gacq_deploy.errors import ResourceError
from gacq_deploy.storage.room import available_memory

MEMORY_HINT = "Lower calibration.memory_mb with --set, or --batch; `--dry-run` estimates what is needed."
_THREADS_HINT = (
    "Ask for fewer: --threads, or calibration.threads with --set; `ulimit -u -v` shows the limits."
)
_NO_MEMORY = (
    "allocate memory",  # PyTorch, the system
    "allocate",  # with a number: numpy, ONNX Runtime
    "could not create a primitive",  # oneDNN
    "could not create a memory",
    "failed to map segment",  # the loader of shared libraries
    "unable to mmap",
    "arena alloc failed",  # protobuf
    "bad_alloc",
    "bad allocation",
    "out of memory",
    "outofmemory",
    "memoryerror",
    "not enough memory",
    "insufficient memory",
    "cudaerror 2:",
)
_NO_THREADS = (
    "can't start new thread",  # Python
    "pthread_create",  # ONNX Runtime
    "thread creation failed",  # OpenMP
    "resource temporarily unavailable",
)
_NEEDS_A_FAILURE = "allocate"
"""Says nothing by itself: that it failed has to be said too."""
_FAILED = re.compile(r"can.?t|cannot|could not|unable to|fail", re.IGNORECASE)
_UNITS = {"": 1, "b": 1, "bytes": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}
_ASKED = re.compile(
    r"(?:allocate|of size|requested bytes of)\s+(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>bytes|[KMGT]iB|B)?",
    re.IGNORECASE,
)
_SCARCE = 16 << 20
"""Bytes that are left of an address space when hardly any library can still do its work."""
_LONGEST = 300
"""Characters of a library's own words."""


def says_no_memory(text: str) -> bool:
    """Tell whether the words of a library mean that memory ran out."""
    low = text.lower()
    found = next((word for word in _NO_MEMORY if word in low), None)
    return found is not None and (found != _NEEDS_A_FAILURE or _FAILED.search(low) is not None)


def says_no_threads(text: str) -> bool:
    """Tell whether the words of a library mean that the system gave no more threads or processes."""
    return any(word in text.lower() for word in _NO_THREADS)


def lack_of_memory(error: BaseException, doing: str = "") -> ResourceError | None:
    """Return what is to be said if memory or threads ran out: in the error itself, or in one that caused it.

    Args:
        error: of whatever library.
        doing: what asked for it, for the message.

    Returns:
        None where something else went wrong.
    """
    place = f"{doing}: " if doing else ""
    for cause in _causes(error):
        words = _telling(str(cause)) or "the system gave no more"
        if is_no_memory(cause):
            return ResourceError(
                f"Out of memory: {place}{words.rstrip('.')}. {_wanted(words)}Earlier files are untouched.",
                MEMORY_HINT,
            )
        if says_no_threads(words):
            return ResourceError(
                f"The system gives no more threads: {place}{words.rstrip('.')}. {_room()}"
                "Earlier files are untouched.",
                _THREADS_HINT,
            )
    return None


def starved(error: BaseException) -> ResourceError | None:
    """Return what is to be said of an error that tells nothing, in a process that has used up its address space.

    Libraries that are given no memory also fail without a word of it. None where there is room, or no limit.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY or limit - _mapped() > _SCARCE:
        return None
    words = _telling(f"{type(error).__name__}: {error}")
    return ResourceError(
        f"Out of memory: {words.rstrip('.')}. {_room()}Earlier files are untouched.", MEMORY_HINT
    )


def is_no_memory(error: BaseException) -> bool:
    """Tell whether an error itself, not what caused it, means that memory ran out."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return "OutOfMemory" in type(error).__name__ or says_no_memory(str(error))


def _telling(text: str) -> str:
    """Return the line of a library's words that says it, or the first one."""
    lines = [" ".join(line.split()) for line in text.strip().splitlines()]
    said = (line for line in lines if says_no_memory(line) or says_no_threads(line))
    return next(said, lines[0] if lines else "")[-_LONGEST:]


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in seen:
        yield link
        seen.append(link)
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _wanted(words: str) -> str:
    """Return what was asked for, where the library says it, and what there is."""
    found = _ASKED.search(words)
    if found is None:
        return _room()
    asked = float(found["number"]) * _UNITS[(found["unit"] or "").lower()]
    return f"{asked / 1e6:.1f} MB were asked for at once. {_room()}"


def _room() -> str:
    """Return how much memory the machine has left, and how much this process may still take, in a sentence."""
    parts = []
    available = available_memory()
    if available is not None:
        parts.append(f"{available / 1e6:.0f} MB are available")
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        parts.append(
            f"this process may have {limit / 1e6:.0f} MB (ulimit -v) and has {_mapped() / 1e6:.0f} MB"
        )
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}. " if text else ""


def _mapped() -> int:
    """Return the bytes of this process's address space."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return 0
