"""Does opening an engine tell anybody? ONNX Runtime's wheels report each process unless they are told not to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
OPEN = """
from gacq_deploy.engines.open import open_engine
from gacq_deploy.doctor.graph import one_node_graph
with open_engine("ort-cpu", one_node_graph()):
    pass
"""


def _left_behind(code: str, home: Path) -> list[str]:
    """Return what a process leaves in its home; it has no CI variable, which would silence the library too."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "TMPDIR": str(home),
        "PYTHONPATH": str(ROOT),
    }
    subprocess.run([sys.executable, "-c", code], env=environment, cwd=home, timeout=120, check=True)
    return sorted(path.name for path in home.rglob("*"))


def test_opening_an_engine_leaves_no_identifier_behind(tmp_path: Path) -> None:
    assert _left_behind(OPEN, tmp_path) == []
