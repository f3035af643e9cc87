"""What does every step of one calibration need?"""

from __future__ import annotations

from dataclasses import dataclass

from gacq_deploy.calibration.replay import chunk_size
from gacq_deploy.calibration.weighting import Split, Weighting
from gacq_deploy.models.base import Denoiser
from gacq_deploy.models.graph import ModelGraph
from gacq_deploy.progress import Reporter
from gacq_deploy.recipe import Recipe
from gacq_deploy.spec import QuantPlan

_GRAPH_OVERHEAD = 21
"""What a sample holds while its losses are differentiated twice, in multiples of all blocks' inputs and outputs;
measured on UNets."""


@dataclass(frozen=True)
class Session:
    """One calibration: what was asked, the traced model, its samples and their weights."""

    recipe: Recipe
    denoiser: Denoiser
    graph: ModelGraph
    plan: QuantPlan
    split: Split
    weighting: Weighting
    report: Reporter

    @property
    def chunk(self) -> int:
        """How many samples may be in memory at once."""
        return chunk_size(self.graph, self.recipe.calibration.memory_mb)

    @property
    def graph_chunk(self) -> int:
        """How many samples may be in memory at once with the whole model's graph, of second order."""
        sample = sum(t.bytes for b in self.graph.blocks for t in (*b.inputs.values(), b.output))
        return int(min(64, max(1, self.recipe.calibration.memory_mb * 2**20 // (_GRAPH_OVERHEAD * sample))))
