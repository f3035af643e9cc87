"""How should calibration learn? The recipe's sections for reconstruction, sample weights and polish."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

MEGABYTES_MAX = 1 << 24
COUNT_MAX = 1_000_000
"""More samples, steps or iterations than anyone has waited for: a slip of the keyboard takes no memory."""


class Section(BaseModel):
    """A part of a recipe: frozen, unknown keys refused; a field's docstring is its help."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class ReconstructionSection(Section):
    """AdaRound block reconstruction (Nagel et al. 2020, BRECQ 2021)."""

    iterations: int = Field(default=400, ge=0, le=COUNT_MAX)
    """Adam steps per block; 0 keeps nearest rounding and the estimated scales."""
    batch: int = Field(default=32, ge=1, le=COUNT_MAX)
    """Samples of a step."""
    lr_rounding: float = Field(default=1e-2, gt=0)
    """Learning rate of the rounding logits."""
    lr_scale: float = Field(default=1e-3, ge=0)
    """Learning rate of log activation scales; 0 keeps the estimated ones."""
    rounding_lambda: float = Field(default=1e-2, ge=0)
    """Weight of the regulariser that drives each weight to one of its two neighbours."""
    beta: tuple[float, float] = (20.0, 2.0)
    """Annealing of the rounding regulariser."""
    warmup: float = Field(default=0.2, ge=0, lt=1)
    """Share of the iterations without the rounding regulariser."""


WeightingMode = Literal["uniform", "relative", "mse", "gac", "gac_faithful"]
WeightedStage = Literal["reconstruction", "polish"]


class WeightingSection(Section):
    """How much each calibration sample counts: learned by gradient alignment (GAC-style), or fixed."""

    mode: WeightingMode = "gac"
    """`uniform`: all count the same. `relative`: the objective's own coefficient of the sample's timestep. `mse`: least
    validation error after one look-ahead step. `gac`: that, minus the mean pairwise cosine of the timestep groups'
    gradients. `gac_faithful`: the paper's surrogate, raw inner products, from equal weights."""
    stages: tuple[WeightedStage, ...] = ("polish",)
    """Where the weights count."""
    groups: int = Field(default=5, ge=2, le=COUNT_MAX)
    """Timestep groups whose gradients are aligned."""
    iterations: int = Field(default=4, ge=1, le=COUNT_MAX)
    """Meta iterations per block; one costs as much as some twenty reconstruction steps."""
    polish_iterations: int = Field(default=10, ge=1, le=COUNT_MAX)
    """Meta iterations of the polish."""
    batch: int = Field(default=32, ge=1, le=COUNT_MAX)
    """Training samples of a meta iteration; the softmax runs over them."""
    validation_batch: int = Field(default=8, ge=1, le=COUNT_MAX)
    """Validation samples per group of a meta iteration."""
    look_ahead: Literal["unit", "plain"] = "unit"
    """`plain`: the paper's step, which favours samples with large gradients. `unit`: its length is held fixed, so
    weights only turn it. `gac_faithful` always takes the plain one."""
    lr: float = Field(default=5e-2, gt=0)
    """Adam's step on the logits."""
    clip: float = Field(default=0.1, gt=0)
    """Largest norm of the logits' gradient."""
    temperature: float = Field(default=1.0, gt=0)
    """Of the softmax over the logits; a higher one keeps weights nearer to each other."""
    lambda_gm: float = Field(default=1.0, ge=0)
    """Weight of gradient matching beside the validation error."""
    matching_limit: float = Field(default=0.5, ge=0)
    """Largest gradient of `gac`'s matching term beside the error's; it is scaled down to that."""
    look_ahead_rms: float = Field(default=0.1, gt=0)
    """Root mean square of the look-ahead step on the rounding logits; the inner learning rate follows from it."""
    weight_range: tuple[float, float] = (0.1, 10.0)
    """Bounds of a weight, at mean 1."""
    min_effective: float = Field(default=0.5, gt=0, le=1)
    """Least effective sample size, as a share of the samples."""


PolishParameter = Literal["activation_scales", "biases", "weight_scales", "norm_affines"]


class PolishSection(Section):
    """Joint fine-tuning after the blocks, with the rounding fixed: the graph stays the same, its numbers move."""

    steps: int = Field(default=200, ge=0, le=COUNT_MAX)
    """Adam steps on the whole model; 0 leaves the polish out."""
    batch: int = Field(default=32, ge=1, le=COUNT_MAX)
    """Samples of a step."""
    lr: float = Field(default=2e-3, gt=0)
    """Adam's step at the start; it falls to 5 % of it along a cosine."""
    parameters: tuple[PolishParameter, ...] = ("activation_scales", "biases", "weight_scales", "norm_affines")
    """What is trained."""
    warmup: float = Field(default=0.25, ge=0, lt=1)
    """Share of the steps before weights are learned: first goes what all timesteps agree on, and what is left tells
    them apart. Until then the weights are those that learning starts from."""
    save_every: int = Field(default=50, ge=1, le=COUNT_MAX)
    """Steps between two states on disk; a killed run resumes at the last one."""
