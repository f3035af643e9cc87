"""How much memory and disk does one calibration take, and the export after it? Counted from recipe and graph."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from gacq_deploy.calibration.budget import resident_mb
from gacq_deploy.calibration.limits import needs_checkpoints, quantized_weights, weight_graph_bytes
from gacq_deploy.calibration.replay import (
    block_bytes,
    cache_bytes,
    checkpointed_bytes,
    chunk_size,
    first_order_bytes,
    graph_chunk_size,
    second_order_bytes,
)
from gacq_deploy.models.base import Denoiser
from gacq_deploy.models.structure.graph import Block, ModelGraph
from gacq_deploy.recipe.calibration import WeightedStage
from gacq_deploy.recipe.sections import Recipe
from gacq_deploy.spec import QuantPlan

_BASE = 600 * 2**20
"""torch, diffusers and transformers once imported."""
_ROUNDING = 100
"""Bytes that a weight of the block being learned takes: rounding, its graph, Adam; measured on SD 1.5."""
_SEARCH = 40
"""Bytes that a weight takes while its layer's scale is found."""
_EXPORT_BASE = 550 * 2**20
"""torch, diffusers and the exporter, and the smallest graph."""
_EXPORT_BYTES = 0.3
"""Bytes that a weight adds: larger tensors and graphs; measured from 0.3 to 2.6 billion weights."""


@dataclass(frozen=True)
class Counts:
    """One calibration in numbers: ``branches`` rows an image, ``training`` rows learned from, ``held`` rows held out.

    ``memory_mb`` is what the activations of one pass may take; ``too_large`` are the stages whose weights are not
    learned after all.
    """

    recipe: Recipe
    denoiser: Denoiser
    graph: ModelGraph
    plan: QuantPlan
    branches: int
    training: int
    held: int
    memory_mb: int
    too_large: frozenset[WeightedStage] = frozenset()

    @property
    def rows(self) -> int:
        """All samples."""
        return self.training + self.held

    @property
    def chunk(self) -> int:
        """Rows that run together in a pass over the samples."""
        return min(self.rows, chunk_size(self.graph, self.memory_mb))

    @property
    def probe_rows(self) -> int:
        """States of the probe."""
        return self.recipe.parity.probe.trajectories * self.recipe.samples.steps * self.branches

    @property
    def is_polished(self) -> bool:
        """Whether there is a polish."""
        return self.recipe.calibration.polish.steps > 0

    @cached_property
    def is_checkpointed(self) -> bool:
        """Whether the polish runs block by block."""
        return needs_checkpoints(self.denoiser, self.graph, self.plan, self.memory_mb)

    def is_learning(self, stage: WeightedStage) -> bool:
        """Whether the recipe asks for learned weights in a stage."""
        section = self.recipe.calibration.weighting
        return section.mode not in ("uniform", "relative") and stage in section.stages

    def learns(self, stage: WeightedStage) -> bool:
        """Whether a stage learns its weights."""
        return self.is_learning(stage) and stage not in self.too_large

    @cached_property
    def weights(self) -> int:
        """All parameters."""
        return sum(p.numel() for p in self.denoiser.module.parameters())

    @cached_property
    def quantized(self) -> int:
        """Weights of the planned layers."""
        return quantized_weights(self.denoiser, self.plan)

    def layers_of(self, block: Block) -> set[str]:
        """Names of the planned layers of a block."""
        return {s.module for s in block.sites if s.role == "weight" and self.plan.get(s)}

    def weights_of(self, layer: str) -> int:
        """Weights of one planned layer."""
        return self.denoiser.module.get_submodule(layer).get_parameter("weight").numel()

    @property
    def stored_bytes(self) -> int:
        """The float model as calibration holds it: half-precision weights as they are stored."""
        return sum(p.numel() * p.element_size() for p in self.denoiser.module.parameters())

    @property
    def row_bytes(self) -> int:
        """One sample: state, prediction and conditioning."""
        conditioning = sum(int(torch.Size(a.shape).numel()) for a in self.denoiser.call.arguments)
        return 4 * (2 * int(torch.Size(self.denoiser.record.sample_shape).numel()) + conditioning)


def memory_bytes(counts: Counts) -> float:
    """Return the largest resident memory of a calibration, mapped weights included."""
    settings, graph = counts.recipe.calibration, counts.graph
    blocks = [sum(map(counts.weights_of, counts.layers_of(block))) for block in graph.blocks]
    learned = max(
        _ROUNDING * max(blocks), max(counts.chunk, settings.reconstruction.batch) * block_bytes(graph)
    ) + min(_ROUNDING * max(blocks), settings.reconstruction.batch * block_bytes(graph))
    stages = [learned, _SEARCH * max(map(counts.weights_of, counts.plan.modules)), _saving_bytes(counts)]
    if counts.is_polished:
        stages.append(_polish_bytes(counts, max(blocks)))
    return _BASE + counts.stored_bytes + counts.quantized + max(stages) + 2 * counts.rows * counts.row_bytes


def gpu_bytes(counts: Counts) -> float:
    """Return the largest memory of a GPU that a calibration takes: what always lies there, and its largest stage.

    Samples, the cache of the blocks and the artifact lie on the host.
    """
    settings, graph = counts.recipe.calibration, counts.graph
    largest = max(sum(map(counts.weights_of, counts.layers_of(block))) for block in graph.blocks)
    stages: list[float] = [
        counts.chunk * graph.bytes_per_sample,
        _SEARCH * max(map(counts.weights_of, counts.plan.modules)),
    ]
    if settings.reconstruction.iterations:
        stages.append(_ROUNDING * largest + settings.reconstruction.batch * block_bytes(graph))
    if counts.is_polished:
        stages.append(_polish_bytes(counts, largest))
    return resident_mb(counts.denoiser, counts.plan) * 2**20 + max(stages)


def disk_bytes(counts: Counts) -> float:
    """Return the largest size of the run directory: samples, cache and checkpoint, or checkpoint and artifact."""
    samples = (counts.rows + counts.probe_rows) * counts.row_bytes
    made = counts.quantized + _recorded_bytes(counts) + 3 * counts.probe_rows * counts.row_bytes
    return samples + counts.quantized + max(cache_bytes(counts.graph, counts.rows), made)


def export_bytes(counts: Counts) -> float:
    """Return the largest memory that the export holds itself: weights stay in their files."""
    return _EXPORT_BASE + _EXPORT_BYTES * counts.weights


def _polish_bytes(counts: Counts, largest_block: int) -> float:
    settings, graph = counts.recipe.calibration, counts.graph
    batch = min(settings.polish.batch, counts.training)
    fitting = graph_chunk_size(graph, counts.memory_mb, by_block=counts.is_checkpointed)
    if counts.is_checkpointed:
        return min(batch, fitting) * checkpointed_bytes(graph) + 2 * 4 * largest_block
    held = weight_graph_bytes(counts.denoiser, counts.plan)
    rows = min(batch, fitting) * first_order_bytes(graph)
    if counts.learns("polish"):
        # a meta iteration's batch, and how the gradients of one chunk lie
        rows = max(rows, max(settings.weighting.batch, min(fitting, counts.rows)) * second_order_bytes(graph))
    return held + rows


def _saving_bytes(counts: Counts) -> float:
    """Return what writing and reading back the artifact holds beside the model: codes and probe, twice."""
    return 2 * (counts.quantized + _recorded_bytes(counts))


def _recorded_bytes(counts: Counts) -> float:
    """Return the size of the tensors that the probe records: all blocks' inputs and outputs in two modes."""
    return counts.recipe.parity.probe.local_samples * 2 * counts.graph.bytes_of_all_blocks
