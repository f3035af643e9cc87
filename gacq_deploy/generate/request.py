"""Which images were asked for, and what was made? ``None`` takes the recipe's value, or the pipeline's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gacq_deploy.engines.catalogue import FLOAT_ENGINE, REFERENCE
from gacq_deploy.errors import UsageError
from gacq_deploy.recipe.calibration import COUNT_MAX
from gacq_deploy.recipe.sections import StepPolicySection, Where
from gacq_deploy.sampling.ddim import check_seeds
from gacq_deploy.sampling.step_policy import StepPolicy


@dataclass(frozen=True, kw_only=True)
class ImageRequest:
    """Which images, made how; None takes the recipe's value."""

    count: int
    seed: int = 0
    """Image i starts from seed + i."""
    engine: str = REFERENCE
    labels: Sequence[int] | None = None
    """Class labels, repeated in turn; None takes every class in turn."""
    steps: int | None = None
    batch: int | None = None
    scheduler: str | None = None
    """``ddim``, ``flow`` or a scheduler class of diffusers; None takes the model's own."""
    threads: int = 0
    float_steps: int | None = None
    """Steps that run in float; replaces whatever the recipe's policy asks for."""
    float_where: Where | None = None
    allow_host_code: bool = False
    """Let a version-compatible engine run the code it carries."""
    allow_python: bool = False
    """Run the Python function that the run's recipe names as its model."""
    allow_failed: bool = False
    """Run an engine that failed parity on this machine."""
    trusted_keys: Path | None = None
    """PEM file of public ed25519 keys: a run that none of them signed is refused."""
    prompts: Sequence[str] = ()
    """Of a text-to-image model, repeated in turn; none: the recipe's, image i that of number seed + i in their seeded
    order."""
    negative_prompt: str | None = None
    guidance_scale: float | None = None
    width: int | None = None
    """In pixels, where the graph leaves the size open."""
    height: int | None = None
    pipeline: str | None = None
    """Folder or hub id of the pipeline, where it is no longer where the recipe found it."""
    device: str | None = None
    """Of text encoders and decoder, as PyTorch names it; None: the GPU where the engine runs on one."""

    def check_count(self) -> None:
        """Refuse a number of images that cannot be made, and seeds that no generator takes.

        Raises:
            UsageError: below 1 or beyond all use, or a seed out of range.
        """
        if not 1 <= self.count <= COUNT_MAX:
            raise UsageError(
                f"{self.count} images were asked for.", f"Ask for at least one, and at most {COUNT_MAX}."
            )
        check_seeds((self.seed, self.seed + self.count - 1))

    def policy(self, asked: StepPolicySection) -> StepPolicySection:
        """Return what the recipe asks for, as far as this request does not say otherwise.

        Raises:
            UsageError: a policy for an engine that is float anyway, steps below 0, or a place without a number.
        """
        if self.engine == FLOAT_ENGINE:
            if self.float_steps is not None or self.float_where is not None:
                raise UsageError(
                    f"Engine '{FLOAT_ENGINE}' runs every step in float.",
                    "Leave --float-steps and --float-where out.",
                )
            return StepPolicySection()
        if self.float_where is not None and self.float_steps is None and not asked.float_steps:
            raise UsageError(
                f"Nothing says how many steps are to run in float at '{self.float_where}'.",
                "Add --float-steps.",
            )
        if self.float_steps is None and self.float_where is None:
            return asked
        count = asked.float_steps if self.float_steps is None else self.float_steps
        if count < 0:
            raise UsageError(f"{count} float steps were asked for.", "Ask for 0 or more.")
        return StepPolicySection(float_steps=count, where=self.float_where or asked.where)


@dataclass(frozen=True, kw_only=True)
class GeneratedImages:
    """``images`` [N, C, H, W] float32 in the model's own range, and how they were made."""

    images: NDArray[np.float32]
    graph: str
    engine: str
    seeds: tuple[int, ...]
    labels: tuple[int, ...]
    timesteps: tuple[int, ...]
    sampler: str
    """``ddim``, ``flow`` or a scheduler class of diffusers."""
    seconds: float
    policy: StepPolicy | None = None
    """Which steps ran in float; None when one engine ran them all."""
    prompts: tuple[str, ...] = ()
    """One an image, of a text-to-image model."""
    negative_prompt: str | None = None
    guidance_scale: float | None = None
    """None where nothing is guided."""
