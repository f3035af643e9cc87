"""Which colour is a line drawn in? One a graph and its engine, one a stage of calibration: the same in every chart."""

from __future__ import annotations

from zlib import crc32

from gacq_deploy.artifact.diagnostics import ERROR_STAGES
from gacq_deploy.engines.catalogue import BUILT_IN
from gacq_deploy.parity.report import AT_BATCH

GRAPHS = tuple(
    f"{graph}@{record.name}" for record in BUILT_IN if record.is_quantized for graph in record.graphs
)
"""Graph and engine, in the order of their colours; an engine that another package adds shares one of them."""
COLOURS = len(GRAPHS) + len(ERROR_STAGES)
"""Classes ``s0`` onwards of the page's style sheet."""


def graph_colour(candidate: str) -> int:
    """Return the colour of ``<file>@<engine>``, at whichever batch and mix of steps it was judged."""
    subject = candidate.partition(AT_BATCH)[0].partition(" ")[0]
    if subject in GRAPHS:
        return GRAPHS.index(subject)
    return crc32(subject.encode()) % len(GRAPHS)


def stage_colour(stage: str) -> int:
    """Return the colour of one of :data:`~gacq_deploy.artifact.diagnostics.ERROR_STAGES`."""
    return len(GRAPHS) + ERROR_STAGES.index(stage)
