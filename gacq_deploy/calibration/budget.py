"""On which kind of device does a run compute, and how much memory may one pass take there?

On a CPU what the recipe says, on a GPU what the model leaves of the card.
"""

from __future__ import annotations

import torch

from gacq_deploy.calibration.limits import quantized_weights
from gacq_deploy.errors import ResourceError
from gacq_deploy.models.base import Denoiser
from gacq_deploy.models.devices import card_mb, device_class
from gacq_deploy.recipe.sections import CalibrationSection, Recipe
from gacq_deploy.spec import QuantPlan

SHARE = 0.85
"""Of a card's memory that is taken unless the recipe says otherwise: a display and other programs need some."""
CONTEXT_MB = 600
"""CUDA's own context, cuBLAS's and cuDNN's workspaces."""
_LEAST_MB = 64
_STEP_MB = 256
"""Cards of one kind differ by a few megabytes in what they say of themselves; what is chosen may not."""


def settled(recipe: Recipe, device: torch.device) -> Recipe:
    """Return the recipe with what it leaves open of a device: its kind, and how much of a card is taken.

    That follows from the card's size alone, so that cards of one kind cut sums alike.
    """
    kind, settings = device_class(device), recipe.calibration
    asked = kind if settings.device == "auto" else settings.device_class
    memory = settings.gpu_memory_mb
    if memory is None and asked == kind == "cuda":
        memory = max(_STEP_MB, int(SHARE * card_mb(device)) // _STEP_MB * _STEP_MB)
    return recipe.on_device(asked, memory)


def resident_mb(denoiser: Denoiser, plan: QuantPlan) -> int:
    """Return what lies on a card all the time: the weights as they are stored, their codes, and CUDA's own."""
    stored = sum(p.numel() * p.element_size() for p in denoiser.module.parameters())
    return CONTEXT_MB + (stored + quantized_weights(denoiser, plan)) // 2**20


def activation_mb(settings: CalibrationSection, denoiser: Denoiser, plan: QuantPlan) -> int:
    """Return how many megabytes the activations of one pass may take.

    Raises:
        ResourceError: the model leaves none of the GPU's.
    """
    if settings.device_class == "cpu" or settings.gpu_memory_mb is None:
        return settings.memory_mb
    resident = resident_mb(denoiser, plan)
    left = settings.gpu_memory_mb - resident
    if left < _LEAST_MB:
        raise ResourceError(
            f"The model takes {resident} MB of the GPU, its codes included, and calibration.gpu_memory_mb is "
            f"{settings.gpu_memory_mb}: nothing is left to compute in.",
            "Raise it if the card has more, store the weights in half precision, or pass --device cpu.",
        )
    return left
