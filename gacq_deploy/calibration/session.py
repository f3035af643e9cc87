"""What does every step of one calibration need?"""

from __future__ import annotations

from dataclasses import dataclass

from gacq_deploy.calibration.limits import needs_checkpoints
from gacq_deploy.calibration.replay import chunk_size, graph_chunk_size, second_order_rows
from gacq_deploy.calibration.weighting.weighting import Split, Weighting
from gacq_deploy.models.base import Denoiser
from gacq_deploy.models.structure.graph import ModelGraph
from gacq_deploy.models.trajectories.collect import Trajectories
from gacq_deploy.progress import Reporter
from gacq_deploy.recipe.sections import Recipe
from gacq_deploy.spec import QuantPlan


@dataclass(frozen=True)
class Session:
    """One calibration: what was asked, the traced model, its samples and their weights."""

    recipe: Recipe
    denoiser: Denoiser
    graph: ModelGraph
    plan: QuantPlan
    split: Split
    weighting: Weighting
    trajectories: Trajectories
    report: Reporter
    memory_mb: int
    """What the activations of one pass may take (:mod:`gacq_deploy.calibration.budget`)."""

    @property
    def chunk(self) -> int:
        """How many samples may be in memory at once."""
        return chunk_size(self.graph, self.memory_mb)

    @property
    def graph_chunk(self) -> int:
        """How many samples may be in memory at once with the whole model's graph."""
        return graph_chunk_size(self.graph, self.memory_mb, by_block=self.is_checkpointed)

    @property
    def second_order_rows(self) -> int:
        """How many samples may be in memory at once with the whole model's graph of second order."""
        return second_order_rows(self.graph, self.memory_mb)

    @property
    def is_checkpointed(self) -> bool:
        """Whether the whole model's graph is made again block by block when gradients are due."""
        return needs_checkpoints(self.denoiser, self.graph, self.plan, self.memory_mb)
