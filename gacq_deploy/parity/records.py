"""What stands in ``parity.json`` beside the judged numbers: who was judged, where, and how trajectories drift apart?"""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from gacq_deploy.export.record import SubjectRecord
from gacq_deploy.recipe.sections import StepPolicySection
from gacq_deploy.storage.records import OpenRecord, Record


class BucketRecord(OpenRecord):
    """The timesteps of a bucket, where a comparison states them, and what was measured in it."""

    timestep_max: int | None = None
    timestep_min: int | None = None

    @model_validator(mode="after")
    def _has_two_ends(self) -> Self:
        if (self.timestep_max is None) != (self.timestep_min is None):
            raise ValueError("a bucket has one end")
        return self


class JudgedPolicy(Record):
    """Which sampler steps ran in float when trajectories and images were judged."""

    asked: StepPolicySection = StepPolicySection()
    timesteps: tuple[int, ...] = ()
    """Of the sampler, noisiest first."""
    float_timesteps: tuple[int, ...] = ()
    float_share: float = Field(default=0.0, ge=0, le=1)


class JudgedSubject(SubjectRecord):
    """Graphs and engines that were judged, and where."""

    processor: dict[str, str | None] | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    engines: dict[str, str] = Field(default_factory=dict)
    """Library -> key of the compiled engine."""
    not_judged: dict[str, str] = Field(default_factory=dict)
    step_policy: JudgedPolicy = JudgedPolicy()


class TrajectoryRecord(OpenRecord):
    """What the free-running trajectories were, and how they drift apart."""

    images: int = Field(default=1, ge=1)
    compared: str | None = None
    by_step: dict[str, tuple[dict[str, float | None], ...]] = Field(default_factory=dict)
    """Candidate -> one row a step."""
