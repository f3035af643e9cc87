"""Whatever a library calls it, memory that ran out is one error, with what was asked for and what there is."""

from __future__ import annotations

import errno
import os
import resource
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gacq_deploy.errors import ExportError, ResourceError
from gacq_deploy.storage.memory import MEMORY_HINT, lack_of_memory, says_no_memory, starved

RECORDED = (
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 4000000000 bytes. Error code 12 (Cannot allocate memory)"
    ),
    RuntimeError("could not create a primitive"),
    RuntimeError("unable to mmap 5850436 bytes from file <w.safetensors>: Cannot allocate memory (12)"),
    RuntimeError("std::bad_alloc"),
    RuntimeError("Failed to allocate memory for requested buffer of size 262144"),
    RuntimeError("bfc_arena.cc:360 Failed to allocate memory for requested buffer of size 1048576"),
    ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    MemoryError("Arena alloc failed"),
    MemoryError(),
    OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
)
THREADS = (
    RuntimeError("can't start new thread"),
    RuntimeError("[ONNXRuntimeError] : 1 : FAIL : pthread_create failed, error code: 11 error msg: Resource"),
    BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)),
)
OTHER = (
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
    ValueError("the buffer was allocated with another size"),
    OSError(errno.EACCES, os.strerror(errno.EACCES)),
    RuntimeError("Failed to decompose the FX graph for ONNX compatibility"),
)


@pytest.mark.parametrize("error", RECORDED, ids=str)
def test_every_library_s_words_are_known(error: Exception) -> None:
    said = lack_of_memory(error, "Opening x")
    assert isinstance(said, ResourceError)
    assert said.message.startswith("Out of memory: Opening x: ")
    assert "MB are available" in said.message
    assert "Earlier files are untouched." in said.message
    assert said.hint == MEMORY_HINT


@pytest.mark.parametrize("error", THREADS, ids=str)
def test_threads_that_are_not_given_have_a_remedy_of_their_own(error: Exception) -> None:
    said = lack_of_memory(error)
    assert isinstance(said, ResourceError)
    assert said.message.startswith("The system gives no more threads: ")
    assert "--threads" in said.hint


@pytest.mark.parametrize("error", OTHER, ids=str)
def test_other_errors_are_left_alone(error: Exception) -> None:
    assert lack_of_memory(error) is None
    assert not says_no_memory(str(error))


def test_a_cause_is_seen_behind_what_it_led_to() -> None:
    try:
        try:
            raise RECORDED[0]
        except RuntimeError as cause:
            raise ExportError("Failed to decompose the FX graph.", "Report it.") from cause
    except ExportError as error:
        said = lack_of_memory(error)
    assert said is not None
    assert said.message.startswith("Out of memory: [enforce fail")
    assert "4000.0 MB were asked for at once. " in said.message


def test_numpy_s_own_error_tells_how_much_was_asked_for() -> None:
    with pytest.raises(MemoryError) as caught:
        np.empty(1 << 60, np.uint8)
    assert "Unable to allocate" in str(caught.value)
    said = lack_of_memory(MemoryError("Unable to allocate 1.25 MiB for an array with shape (20, 64)"))
    assert said is not None
    assert "1.3 MB were asked for at once." in said.message


def test_the_line_that_tells_is_shown() -> None:
    said = lack_of_memory(
        RuntimeError("Failed to import x because of:\nlibx.so: failed to map segment\n(see above)")
    )
    assert said is not None
    assert said.message.startswith("Out of memory: libx.so: failed to map segment. ")


def test_an_error_that_tells_nothing_is_a_bug_where_there_is_room() -> None:
    assert starved(SystemError("error return without exception set")) is None


def test_a_limit_of_the_process_is_said() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 44, hard))
    try:
        said = lack_of_memory(MemoryError())
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert said is not None
    assert "this process may have 17592186 MB (ulimit -v) and has " in said.message


def _start_threads() -> None:
    """Start threads until the address space has no room for another stack."""
    stop = threading.Event()
    while True:
        threading.Thread(target=stop.wait, daemon=True).start()


def _starve(send: Callable[[str], None]) -> None:
    """Run out of memory in several libraries in turn, and say what is said of it."""
    torch = pytest.importorskip("torch")
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + (64 << 20),) * 2)
    for want in (lambda: torch.empty(1 << 28), lambda: np.ones(1 << 28), _start_threads):
        try:
            want()
        except (RuntimeError, MemoryError) as error:
            said = lack_of_memory(error)
            send("nothing" if said is None else said.message)
    said = starved(SystemError("error return without exception set"))
    send("nothing" if said is None else said.message)


def test_what_libraries_really_say_is_recognised() -> None:
    pytest.importorskip("torch")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _starve(lambda text: os.write(writer, text.encode() + b"\n") and None)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as pipe:
        said = pipe.read().splitlines()
    os.waitpid(child, 0)
    assert len(said) == 4
    assert all("1073.7 MB were asked for at once" in text or "2147.5 MB" in text for text in said[:2]), said
    assert all("this process may have" in text for text in said), said
    assert said[3].startswith("Out of memory: SystemError: error return without exception set. "), said
    assert said[2].startswith("The system gives no more threads: can't start new thread"), said
