"""What can a large model not do within the recipe's memory? Decided by the recipe and the model, not by the machine."""

from __future__ import annotations

from gacq_deploy.calibration.replay import first_order_bytes, second_order_bytes
from gacq_deploy.models.base import Denoiser
from gacq_deploy.models.structure.graph import ModelGraph
from gacq_deploy.recipe.calibration import WeightedStage
from gacq_deploy.spec import QuantPlan


def needs_checkpoints(denoiser: Denoiser, graph: ModelGraph, plan: QuantPlan, memory_mb: int) -> bool:
    """Tell whether the whole model's graph of one sample is more than ``memory_mb``."""
    return first_order_bytes(graph) + weight_graph_bytes(denoiser, plan) > memory_mb * 2**20


def weight_graph_bytes(denoiser: Denoiser, plan: QuantPlan) -> int:
    """Return what the whole model's graph holds of its quantized weights: float codes, and those scaled."""
    return 2 * 4 * quantized_weights(denoiser, plan)


def quantized_weights(denoiser: Denoiser, plan: QuantPlan) -> int:
    """Return how many weights the planned layers have, whether they are float or prepared."""
    layers = [denoiser.module.get_submodule(name) for name in plan.modules]
    return sum(p.numel() for layer in layers for p in layer.parameters() if p.ndim > 1)


def too_large_to_learn(
    denoiser: Denoiser, graph: ModelGraph, plan: QuantPlan, memory_mb: int
) -> dict[WeightedStage, str]:
    """Return the stages whose sample weights cannot be learned, with the reason.

    Learning them in the polish differentiates the whole model twice: one sample has to fit in ``memory_mb``.
    """
    needed = (second_order_bytes(graph) + weight_graph_bytes(denoiser, plan)) // 2**20
    if needed <= memory_mb:
        return {}
    return {
        "polish": f"Weights are the objective's own: learning them would hold {needed} MB a sample, "
        f"one pass may take {memory_mb} MB."
    }
