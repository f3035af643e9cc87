"""Which graph is judged in which engine, and under which names?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from gacq_deploy.engines.catalogue import REFERENCE, engine_named
from gacq_deploy.parity.exact import CANONICAL, CPU, Flavour

FLOAT = f"float.onnx@{REFERENCE}"
"""The float graph, from which all trajectories start."""
FILES, FLOAT_STAGE = "parity: files", f"parity: {FLOAT}"
"""The stages in which files are compared with the artifact, and the float graph with torch."""


@dataclass(frozen=True)
class Candidate:
    """A quantized graph in an engine."""

    flavour: Flavour
    engine: str

    @property
    def name(self) -> str:
        """``int8.onnx@ort-cpu``."""
        return f"{self.flavour.file}@{self.engine}"

    @property
    def reference(self) -> str:
        """Torch for ONNX Runtime's CPU engine, which in turn is the reference of every other engine."""
        if self.engine == REFERENCE:
            return f"torch/{self.flavour.placement}"
        return f"{self.flavour.file}@{REFERENCE}"


def candidates_of(files: Sequence[str], engines: Sequence[str]) -> tuple[Candidate, ...]:
    """Return the candidates for the exported ``files`` and the ``engines`` asked for.

    ONNX Runtime's CPU engine runs every flavour, every other engine the canonical one.
    """
    return tuple(
        Candidate(flavour, engine)
        for engine in engines
        for flavour in (CANONICAL, CPU)
        if flavour.file in files and flavour.file in engine_named(engine).graphs
    )


def stages_of(candidates: Sequence[Candidate]) -> tuple[str, ...]:
    """Return the stages that :func:`gacq_deploy.parity.comparisons.measure_comparisons` announces, in order."""
    return (FILES, FLOAT_STAGE, *chain.from_iterable(map(stages_of_candidate, candidates)))


def stages_of_candidate(candidate: Candidate) -> tuple[str, str]:
    """Return the stages in which a candidate is judged: on single states, and on whole trajectories."""
    return f"parity: {candidate.name}, states", f"parity: {candidate.name}, images"
