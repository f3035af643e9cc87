"""What do `lint`, `check` and `predict` cost as a graph grows? CPU seconds and memory from 1,000 to 100,000 nodes.

``python -m benchmarks.graph_size`` (12 minutes on one core) writes graphs of several shapes, asks each question in a
process of its own and writes ``benchmarks/results/graph_size.jsonl``: a long network, and shapes at which a walk from
each node would cost the square of the nodes or more. The growth is the slope of log seconds over log nodes between the
two largest graphs: 1 where twice the nodes take twice the seconds, 2 where they take four times as long.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.store import RESULTS, write_rows
from gacq_deploy.check.check import check_file
from gacq_deploy.errors import ArtifactError
from gacq_deploy.graph.files import read_graph
from gacq_deploy.lint.lint import lint_file, predict_compilation
from tests.support.graphs.large import FAMILIES

OUT = RESULTS / "graph_size.jsonl"
NODES = (1_000, 10_000, 100_000)
QUESTIONS: Mapping[str, Callable[[Path], object]] = {
    "lint": lambda path: lint_file(path, target="tensorrt"),
    "predict": lambda path: predict_compilation(read_graph(path)),
    "check": lambda path: check_file(path, "tensorrt-11"),
    "check ort-cpu": lambda path: check_file(path, "ort-cpu"),
}


def ask(question: str, path: Path) -> dict[str, float]:
    """Ask one question in this process; return CPU seconds, and the most megabytes that the process ever held."""
    began = time.process_time()
    # a malformed graph is refused: what that costs is the answer
    with suppress(ArtifactError):
        QUESTIONS[question](path)
    seconds = time.process_time() - began
    # getrusage tells what the parent held before this program began
    peak = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    )
    return {"seconds": seconds, "mb": int(peak.split()[1]) / 1024}


def measure(question: str, path: Path) -> dict[str, float]:
    """Ask one question in a new process."""
    command = [sys.executable, "-m", "benchmarks.graph_size", question, str(path)]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, float] = json.loads(told)
    return found


def exponent(seconds: Mapping[int, float]) -> float:
    """Return the growth between the two largest graphs."""
    *_, (fewer, less), (more, most) = sorted(seconds.items())
    return math.log(most / less) / math.log(more / fewer)


def row_of(family: str, folder: Path) -> dict[str, Any]:
    """Measure one shape at every size; seconds and megabytes by question."""
    found: dict[str, dict[int, dict[str, float]]] = {question: {} for question in QUESTIONS}
    count = 0
    for nodes in NODES:
        path = folder / "graph.onnx"
        model = FAMILIES[family](nodes)
        count = len(model.graph.node)
        path.write_bytes(model.SerializeToString())
        for question in QUESTIONS:
            found[question][count] = measure(question, path)
    return {
        "nodes": count,
        "pairs": sum(node.op_type == "QuantizeLinear" for node in model.graph.node),
        "cpu_seconds": {
            question: {nodes: round(one["seconds"], 2) for nodes, one in sizes.items()}
            for question, sizes in found.items()
        },
        "growth": {
            question: round(exponent({nodes: one["seconds"] for nodes, one in sizes.items()}), 2)
            for question, sizes in found.items()
        },
        "peak_mb": {question: round(sizes[count]["mb"]) for question, sizes in found.items()},
    }


def main() -> None:
    """Measure every shape, print, write."""
    if len(sys.argv) == 3:
        sys.stdout.write(json.dumps(ask(sys.argv[1], Path(sys.argv[2]))))
        return
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for family in FAMILIES:
            rows[family] = row_of(family, Path(folder))
            print(family, json.dumps(rows[family]))
    libraries = {library: version(library) for library in ("onnx", "onnxruntime")}
    about = {"command": "python -m benchmarks.graph_size", **libraries, "threads": 1}
    write_rows(OUT, rows, about)


if __name__ == "__main__":
    main()
