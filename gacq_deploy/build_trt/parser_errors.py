"""What does the parser's complaint mean for the user? Node, the module it came from, and a remedy."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from onnx import ModelProto

from gacq_deploy.errors import EngineError, GacqError
from gacq_deploy.graph.files import read_graph
from gacq_deploy.graph.index import module_of
from gacq_deploy.lint.lint import errors_in, lint_graph

_SHOWN = 5
_REMEDIES: tuple[tuple[str, str], ...] = (
    (r"[Nn]on-zero zero point", "TensorRT quantizes symmetrically: build from int8.onnx, not int8.cpu.onnx."),
    (r"[Ss]cale coefficients must all be positive", "Clamp the scales of dead channels to a small positive number."),
    (r"type Int32 but must have type", "Keep the bias float (int8.onnx does)."),
    (r"must be of same type", "Dequantize activation and weight to one float type."),
    (r"[Pp]lugin not found|not found in.*registry|[Nn]o importer|checkFallbackPluginImporter|[Uu]nsupported op",
     "Replace the operator by standard ones, or leave that part out of the graph."),
    (r"onnxModelFile|cannot be found|Failed to (?:open|parse)", "Export the graph again."),
    (r"external|weights? (?:file|data)", "Keep the graph's .data file beside it."),
)  # fmt: skip


def explain_refusal(graph: Path, problems: Sequence[dict[str, str]], library: str) -> EngineError:
    """Return the error that a parser's refusal becomes.

    Args:
        graph: the file it refused.
        problems: ``text``, ``node`` and ``operator`` of each of the parser's errors.
        library: its label.
    """
    model, remedies = _look(graph)
    modules: dict[str, str | None] = {}
    if model is not None:
        modules = {node.name: module_of(node) for node in model.graph.node}
    lines, hints = [], []
    for problem in problems[:_SHOWN]:
        node, operator = problem["node"], problem["operator"]
        where = f"node '{node}'" if node else "the file"
        where += f" ({operator})" if operator else ""
        module = modules.get(node)
        where += f" of module '{module}'" if module else ""
        lines.append(f"{where}: {problem['text']}")
        hints.append(remedies.get(node) or _remedy(problem["text"]))
    more = f" ... and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    hint = " ".join(dict.fromkeys(h for h in hints if h)) or "Run `gacq-deploy check` on the graph."
    return EngineError(f"The parser of {library} refuses {graph.name}: {'; '.join(lines)}{more}.", hint)


def _look(graph: Path) -> tuple[ModelProto | None, dict[str, str]]:
    """Return the graph and what the lint says of its nodes; nothing where the file is not readable."""
    try:
        model = read_graph(graph)
        found = errors_in(lint_graph(model, target="tensorrt"))
    except GacqError:
        return None, {}  # the parser's refusal is told without them
    return model, {f.node: f"{f.effect} {f.remedy}" for f in reversed(found)}


def _remedy(text: str) -> str:
    return next((remedy for pattern, remedy in _REMEDIES if re.search(pattern, text)), "")
