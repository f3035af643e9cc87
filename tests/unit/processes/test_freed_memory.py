"""Freed memory is the system's again, also where small things lie between large ones."""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
import json
from contextlib import nullcontext
import numpy as np
from gacq_deploy.processes.freed_memory import large_blocks_apart
from tests.support.programs.anonymous_memory import anonymous_mb

def leave_holes():
    before, small = anonymous_mb(), []
    for _ in range(10):
        large = [np.ones(4 << 20, np.uint8) for _ in range(2)]
        small.append(bytes(100_000))
        del large
        small.append(np.ones(6 << 20, np.uint8))
    kept = [value for value in small if isinstance(value, bytes)]
    del small
    return anonymous_mb() - before, kept

np.ones(31 << 20, np.uint8)  # glibc then takes smaller blocks from the heap
found = {}
for name, context in (("apart", large_blocks_apart()), ("usual", nullcontext())):
    with context:
        found[name], kept = leave_holes()
print(json.dumps(found))
"""


def test_large_blocks_leave_no_holes() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["apart"] < 5
    assert found["usual"] > 20
