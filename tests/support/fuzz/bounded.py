"""How is work bounded that may never end? By the calls of functions, which are the same on every machine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Unbounded(BaseException):
    """More work than allowed; nothing between here and the test may catch it."""


@contextmanager
def counted(most: int) -> Iterator[list[int]]:
    """Count the calls of functions, compiled ones too; end the work beyond ``most``."""
    calls = [0]

    def count(frame: FrameType, event: str, arg: Any) -> None:
        calls[0] += event in ("call", "c_call")
        if calls[0] > most:
            raise Unbounded(f"more than {most:,} calls")

    sys.setprofile(count)
    try:
        yield calls
    finally:
        sys.setprofile(None)
