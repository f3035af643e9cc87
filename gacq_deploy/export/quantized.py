"""Which Q/DQ graph goes into a file of that name, and does it keep the rules of the engines that the file is for?"""

from __future__ import annotations

import onnx

from gacq_deploy.artifact.artifact import CalibrationArtifact
from gacq_deploy.engines.catalogue import CPU, rules_for
from gacq_deploy.errors import ExportError
from gacq_deploy.export.cpu_flavour import to_cpu_flavour
from gacq_deploy.export.qdq import Placement, insert_qdq
from gacq_deploy.export.record import LintCounts
from gacq_deploy.graph.weights import Store, stored
from gacq_deploy.lint.lint import count_findings, errors_in, lint_graph


def placement_of(name: str) -> Placement:
    """Return where the graph of a file quantizes."""
    return "output" if name == CPU else "input"


def quantized_graph(
    name: str, model: onnx.ModelProto, artifact: CalibrationArtifact, *, store: Store = stored
) -> tuple[onnx.ModelProto, tuple[LintCounts, ...]]:
    """Return the graph of a file, and what the lint found in it for each of the file's engines.

    Args:
        name: of the file.
        model: the float graph, with or without values.
        artifact: what was learned.
        store: decides where codes lie.

    Raises:
        ExportError: as :func:`insert_qdq` and :func:`to_cpu_flavour`, or the graph breaks a rule.
    """
    graph = insert_qdq(model, artifact, placement=placement_of(name), store=store)
    if name == CPU:
        graph = to_cpu_flavour(graph)
    counts = []
    for target in rules_for(name):
        findings = lint_graph(graph, target=target)
        if broken := errors_in(findings):
            raise ExportError(
                f"{name} breaks {len(broken)} rules for {target}; first: {broken[0]}",
                "Leave that layer float in quantization.rules; `gacq-deploy lint` explains the rule.",
            )
        counts.append(LintCounts(file=name, target=target, **count_findings(findings)))
    return graph, tuple(counts)
