"""What comes of tests, run in a process of their own: which pass, and what those say that fail?"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from tests.support.programs.commands import child_environment

LONGEST = 3600
"""Seconds of one call of pytest."""
_LONGEST_REASON = 160
"""Characters of what a test said."""
_FOLDERS = re.compile(r"(?<![\w.])(?:/[^\s/'\"]+)+/")


def told_anywhere(message: str) -> str:
    """Return what a test said, on a line, cut short, and without the folders of this machine."""
    return _FOLDERS.sub(".../", " ".join(message.split()))[:_LONGEST_REASON]


@dataclass
class Outcome:
    """What came of some tests."""

    failed: dict[str, str] = field(default_factory=dict)
    """Node id -> why."""
    passed: set[str] = field(default_factory=set)
    skipped: set[str] = field(default_factory=set)
    said: str = ""
    """All that was printed."""


def run_tests(checkout: Path, selectors: Iterable[str]) -> Outcome:
    """Run tests of a checkout. A test that could not begin has neither failed nor passed."""
    with tempfile.TemporaryDirectory(prefix="gacq-tests-") as base:
        record = Path(base) / "outcome.xml"
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", "--basetemp", f"{base}/tmp",
             "-o", "junit_family=xunit1", "--junitxml", record, *sorted(set(selectors))],
            env=child_environment(root=checkout),
            cwd=checkout, capture_output=True, text=True, timeout=LONGEST, check=False,
        )  # fmt: skip
        outcome = Outcome(said=done.stdout + done.stderr)
        for case in ElementTree.parse(record).iter("testcase") if record.exists() else ():
            node = f"{case.get('file')}::{case.get('name')}"
            if (failure := case.find("failure")) is not None:
                outcome.failed[node] = told_anywhere(failure.get("message", ""))
            elif case.find("skipped") is not None:
                outcome.skipped.add(node)
            elif case.find("error") is None:
                outcome.passed.add(node)
    return outcome
